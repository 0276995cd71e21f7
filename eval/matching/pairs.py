"""What matched what in image-caption pairs: each word with its region, and the concepts of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from eval.arrays import save_arrays
from eval.encode import Collector, encode
from eval.matching.concepts import ConceptCollector, RegionConcepts, codebook_of
from eval.matching.correspondence import Judged, Matches, WordMatcher, judge, row_words
from manifests.files import canonical_json, write_text
from manifests.grounding import Grounding
from train.data import RetrievalData, Word


@dataclass(frozen=True)
class Pairs:
    """Captions with their own images, word by word.

    `words [W]` and `judged` go with the rows of `matches`; `concepts` is None for a model without a codebook.
    """

    data: RetrievalData
    matches: Matches
    words: Sequence[Word]
    judged: Judged
    concepts: RegionConcepts | None

    def row(self, caption: int) -> dict:
        """One caption as plain values: `image`, `number` (of the image's captions, from 1), `text`, and `words`.

        A word has `word`, `start`, `end`, `pos`, `cosine`, `region`, its `box` and the detector's `labels`. Where the
        truth is known it has `kind`, `right` (the object meant) and `fitting` (an object that the word is true of).
        With a codebook it has `concept` and `region_concept`. The best match comes first.
        """
        image = int(self.data.caption_image[caption])
        boxes, labels = self.data.regions(image).boxes, region_labels(self.data, image)
        found = []
        for row in self.matches.rows(caption):
            word, region = self.words[row], int(self.matches.region[row])
            own: dict = {"word": word.text, "start": word.start, "end": word.end, "pos": word.pos}
            own |= {"cosine": round(float(self.matches.cosine[row]), 4), "region": region}
            own |= {"box": [round(float(side), 1) for side in boxes[region]], "labels": labels[region]}
            if self.judged.known[row]:
                right, _, _, fitting, *_ = self.judged.figures[row]
                own |= {"kind": str(self.judged.kind[row]), "right": bool(right), "fitting": bool(fitting)}
            if self.concepts is not None:
                own |= {"concept": int(self.matches.concept[row])}
                own |= {"region_concept": int(self.concepts.of(image)[region])}
            found.append(own)
        return {
            "image": self.data.images[image].id,
            "number": self.data.captions_of(image).index(caption) + 1,
            "text": self.data.caption_text(caption),
            "words": sorted(found, key=lambda own: (-own["cosine"], own["start"])),
        }

    def save(self, folder: Path) -> None:
        """Write `matches.npz`, `correspondence.jsonl` (a `row` a line) and, with a codebook, `concepts.npz`."""
        save_arrays(folder / "matches.npz", self.matches.arrays())
        rows = (canonical_json(self.row(caption)) for caption in range(self.data.num_captions))
        write_text(folder / "correspondence.jsonl", "".join(f"{row}\n" for row in rows))
        if self.concepts is not None:
            self.concepts.save(folder / "concepts.npz")


def match_pairs(
    model: nn.Module,
    data: RetrievalData,
    batch_size: int,
    truth: Mapping[str, Grounding],
    captions: Sequence[int] | None = None,
) -> Pairs:
    """Match the words of every caption of `data`, or of some (rising), with regions of its own image."""
    found = PairCollector(model, data)
    encode(model, data, batch_size, found.collectors, captions=captions)
    return found.pairs(truth)


class PairCollector:
    """Collects what matches what: `collectors` are to see the encodings pass."""

    def __init__(self, model: nn.Module, data: RetrievalData):
        codebook = codebook_of(model)
        self._data, self._matcher = data, WordMatcher(data, codebook)
        self._concepts = ConceptCollector(data, codebook) if codebook is not None else None
        self.collectors: list[Collector] = [self._matcher, *([self._concepts] if self._concepts else [])]

    def pairs(self, truth: Mapping[str, Grounding]) -> Pairs:
        """All of it, once they have passed."""
        data, matches = self._data, self._matcher.matches()
        concepts = self._concepts.concepts() if self._concepts else None
        return Pairs(data, matches, row_words(matches, data), judge(matches, data, truth), concepts)


def region_labels(data: RetrievalData, image: int) -> list[list[str]]:
    """What the detector calls each region of an image: its class and its attribute, as far as the store has them."""
    store, regions = data.region_store, data.regions(image)
    labels: list[list[str]] = [[] for _ in range(len(regions))]
    for names, ids in ((store.object_names, regions.objects_id), (store.attribute_names, regions.attrs_id)):
        if names is not None and ids is not None:
            for own, number in zip(labels, ids.tolist(), strict=True):
                if 0 <= number < len(names):
                    own.append(names[number])
    return labels
