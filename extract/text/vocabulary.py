"""The vocabulary: which number a word has in a token store and in a model.

Entries 0 to 3 are `SPECIAL`; the words follow by falling frequency, ties in alphabetical (code point) order.
"""

from collections.abc import Mapping
from pathlib import Path

from manifests.errors import InputError
from manifests.typed import read_checked

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
UNKNOWN = SPECIAL.index("<unk>")
BOUNDARY_IDS = SPECIAL.index("<start>"), SPECIAL.index("<end>")


def build_vocabulary(counts: Mapping[str, int], min_count: int) -> list[str]:
    """The special entries, then every word of `counts` used at least `min_count` times."""
    words = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL]
    return [*SPECIAL, *sorted(words, key=lambda word: (-counts[word], word))]


def word_numbers(vocabulary: list[str]) -> dict[str, int]:
    """Word -> entry. The special entries are left out: no caption's word may become padding."""
    return {word: number for number, word in enumerate(vocabulary) if number >= len(SPECIAL)}


def read_vocabulary(path: Path) -> list[str]:
    """Read a vocabulary.json; InputError if it is none."""
    fix = "point to the vocabulary.json of a token store (data/DATASET/tokens/vocabulary.json)"
    vocabulary, _ = read_checked(path, list[str], fix=fix)
    if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
        raise InputError(f"doesn't begin with {', '.join(SPECIAL)}", where=path, fix=fix)
    if len(set(vocabulary)) != len(vocabulary):
        repeated = next(word for number, word in enumerate(vocabulary) if word in vocabulary[:number])
        raise InputError(f"holds the word {repeated!r} twice", where=path, fix=fix)
    return vocabulary
