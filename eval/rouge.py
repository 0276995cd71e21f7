"""How alike captions are: ROUGE-L, the F-measure of the longest common subsequence of words (Lin, 2004).

As the COCO captions' evaluation and ALADIN have it: words are what white space divides, in lower case, and recall
weighs β = 1.2. A caption meets an image's captions together: the largest precision and the largest recall may come from
two of them. COCO's test captions have 625 million pairs. So a caption meets all C others at once, by the bit-parallel
algorithm of Hyyrö (2004), one 64-bit word a caption.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

WORD_BITS = 64
BETA = 1.2


class RougeL:
    """ROUGE-L between the captions of a split."""

    def __init__(self, captions: Sequence[str]):
        self._words = [caption.lower().split() for caption in captions]
        self.lengths = np.array([len(words) for words in self._words])
        self._long = [number for number, words in enumerate(self._words) if len(words) > WORD_BITS]
        places: dict[str, dict[int, int]] = defaultdict(dict)
        for number, words in enumerate(self._words):
            if len(words) <= WORD_BITS:
                for place, word in enumerate(words):
                    places[word][number] = places[word].get(number, 0) | 1 << place
        self._places = {
            word: (np.fromiter(found, np.int64), np.fromiter(found.values(), np.uint64))
            for word, found in places.items()
        }

    def with_all(self, caption: int) -> np.ndarray:
        """ROUGE-L of one caption with every caption, itself included: `float64 [C]`, 0 to 1."""
        return self.of_pairs(self.common(caption)[None], self.lengths[[caption]])[0]

    def with_images(self, caption: int, image_of: np.ndarray) -> np.ndarray:
        """ROUGE-L of one caption with the captions of each image that has some, `float64 [N]`; `image_of [C]` rises."""
        _, starts = np.unique(image_of, return_index=True)
        return self.of_groups(self.common(caption)[None], self.lengths[[caption]], starts)[0]

    def of_pairs(self, common: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """ROUGE-L `[Q, C]` of Q captions of `lengths [Q]` with every caption; `common [Q, C]` as below."""
        return f_measure(_share(common, lengths[:, None]), _share(common, self.lengths))

    def of_groups(self, common: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """ROUGE-L `[Q, N]` of Q captions of `lengths [Q]` with groups of captions that begin at `starts [N]`.

        common `[Q, C]` : the lengths of their common subsequences with every caption.
        """
        precision = _share(np.maximum.reduceat(common, starts, axis=1), lengths[:, None])
        return f_measure(precision, np.maximum.reduceat(_share(common, self.lengths), starts, axis=1))

    def with_group(self, common: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """ROUGE-L `[C]` of every caption with one group of Q captions of `lengths [Q]`; `common [Q, C]` as above."""
        return f_measure(_share(common.max(axis=0), self.lengths), _share(common, lengths[:, None]).max(axis=0))

    def common(self, caption: int) -> np.ndarray:
        """The length of the longest common subsequence of one caption with every caption: `float64 [C]`."""
        words = self._words[caption]
        free = np.full(len(self._words), ~np.uint64(0))  # bits of places that no common subsequence has taken
        for word in words:
            if word in self._places:  # only a long caption's words may be nowhere
                rows, masks = self._places[word]
                own = free[rows]
                free[rows] = (own + (own & masks)) | (own & ~masks)
        common = np.bitwise_count(~free).astype(np.float64)
        for other in self._long:
            common[other] = common_subsequence(words, self._words[other])
        return common


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """``(1 + β²) P R / (R + β² P)``; 0 where both are."""
    below = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros(below.shape), where=below > 0)


def _share(common: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return common / np.maximum(lengths, 1)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, by the same algorithm on a number of any length."""
    masks: dict[str, int] = defaultdict(int)
    for place, word in enumerate(second):
        masks[word] |= 1 << place
    full = (1 << len(second)) - 1
    free = full
    for word in first:
        free = ((free + (free & masks[word])) | (free & ~masks[word])) & full
    return len(second) - free.bit_count()
