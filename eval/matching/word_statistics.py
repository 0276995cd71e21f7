"""What a run's words match and which concepts are in use, as figures: `runs/R/correspondence.json`.

A word agrees with the region that it matches if both are nearest to one entry of the codebook. Chance is the share of
its image's regions that are nearest to it. Entropy is that of the entries' use, in bits; 2 to its power, `effective`,
is how many entries used alike would have it.
"""

from collections import Counter

import numpy as np

from eval.matching.correspondence import shares
from eval.matching.pairs import Pairs, region_labels

MOST_FREQUENT = 5


def correspondence_figures(pairs: Pairs) -> dict:
    """`{parts_of_speech: {tag: ...}}` and, with a codebook, `concepts`.

    Of a part of speech: `words`, `different` (word forms) and mean `cosine` with the matched region. Where the truth is
    known, `accuracy`, `chance` and so on of the `known` words. With a codebook, `agreement`, `agreement_chance` and
    `usage`. Of `concepts`: `size`, the same figures for all words and all regions, and `entries`. Each entry in use has
    its most frequent words and region labels, and the agreement of its words.
    """
    matches, judged, concepts = pairs.matches, pairs.judged, pairs.concepts
    agree, expected = _agreement(pairs) if concepts is not None else (None, None)
    tags = np.array([word.pos for word in pairs.words])
    forms = np.array([word.text.lower() for word in pairs.words])
    found: dict = {"parts_of_speech": {}}
    for tag in sorted(set(tags.tolist())):
        rows = tags == tag
        own: dict = {"words": int(rows.sum()), "different": len(set(forms[rows].tolist()))}
        own["cosine"] = _rounded(matches.cosine[rows].mean())
        if (known := rows & judged.known).any():
            accuracy = shares(judged, known)
            own |= accuracy | {"words": own["words"], "known": accuracy["words"]}
        if concepts is not None:
            own |= {"agreement": _rounded(agree[rows].mean()), "agreement_chance": _rounded(expected[rows].mean())}
            own |= usage(matches.concept[rows])
        found["parts_of_speech"][tag] = own
    if concepts is not None:
        found["concepts"] = {
            "size": concepts.size,
            "agreement": _rounded(agree.mean()),
            "agreement_chance": _rounded(expected.mean()),
            "words": usage(matches.concept),
            "regions": usage(concepts.concept),
            "entries": _entries(pairs, agree, expected),
        }
    return found


def usage(concept: np.ndarray) -> dict[str, float | int]:
    """How many entries are in use, the entropy of their use in bits, and how many used alike would have it."""
    counts = np.unique(concept, return_counts=True)[1]
    share = counts / max(1, counts.sum())
    entropy = abs(float((share * np.log2(share)).sum()))
    return {"in_use": len(counts), "entropy": _rounded(entropy), "effective": round(2**entropy, 1)}


def _agreement(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Of every row whether word and region have the same concept, and the share of the image's regions that do."""
    matches = pairs.matches
    agree, expected = np.zeros(len(matches.caption)), np.zeros(len(matches.caption))
    for row, image in enumerate(pairs.data.caption_image[matches.caption].tolist()):
        same = pairs.concepts.of(image) == matches.concept[row]
        agree[row], expected[row] = same[matches.region[row]], same.mean()
    return agree, expected


def _entries(pairs: Pairs, agree: np.ndarray, expected: np.ndarray) -> list[dict]:
    """The entries in use, most used by words first; `agree` and `expected` are `_agreement`'s."""
    nearest = pairs.matches.concept
    said: dict[int, Counter[str]] = {}
    shown: dict[int, Counter[str]] = {}
    for concept, word in zip(pairs.matches.concept.tolist(), pairs.words, strict=True):
        said.setdefault(concept, Counter())[word.text.lower()] += 1
    for image in range(len(pairs.data.images)):
        for concept, labels in zip(pairs.concepts.of(image).tolist(), region_labels(pairs.data, image), strict=True):
            shown.setdefault(concept, Counter()).update(labels)
    regions = Counter(pairs.concepts.concept.tolist())
    words = Counter(pairs.matches.concept.tolist())
    used = sorted({*words, *regions}, key=lambda concept: (-words[concept], -regions[concept], concept))
    return [
        {
            "concept": concept,
            "words": words[concept],
            "regions": regions[concept],
            **(
                {"agreement": _rounded(agree[own].mean()), "agreement_chance": _rounded(expected[own].mean())}
                if (own := nearest == concept).any()
                else {}
            ),
            "most_words": _most(said.get(concept)),
            "most_labels": _most(shown.get(concept)),
        }
        for concept in used
    ]


def _most(counter: Counter[str] | None) -> list[list]:
    """The most frequent with their counts; of equals the first in the alphabet."""
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0])) if counter else []
    return [[name, count] for name, count in ordered[:MOST_FREQUENT]]


def _rounded(value: float) -> float:
    return round(float(value), 4)
