"""How alike captions are: ROUGE-L, the F-measure of the longest common subsequence of words (Lin, 2004).

The values are those of the `rouge-score` package, whose tokenizer is used (letters a to z and digits, lower case). Its
scorer takes one pair at a time, some 30 µs each, and COCO's test captions have 625 million pairs: here a caption meets
all C others at once by the bit-parallel algorithm of Hyyrö (2004), one 64-bit word a caption.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from rouge_score.tokenize import tokenize

WORD_BITS = 64


class RougeL:
    """ROUGE-L between the captions of a split."""

    def __init__(self, captions: Sequence[str]):
        self._words = [tokenize(caption, None) for caption in captions]
        self._lengths = np.array([len(words) for words in self._words])
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
        total = self._lengths + len(words)
        return np.divide(2 * common, total, out=np.zeros(len(total)), where=total > 0)


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
