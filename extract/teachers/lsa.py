"""The built-in caption teacher `lsa`, for when no sentence encoder is at hand: latent semantic analysis.

Words are weighted by TF-IDF: 1 + log of the count, times log((1 + n) / (1 + captions with the word)) + 1. They are
projected on the leading right singular vectors of the train split's captions (Deerwester et al., JASIS 1990). The
teacher knows which words occur together, and neither their order nor their meaning.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from extract.teachers import TEACHERS
from extract.teachers.teacher import Inputs, Teacher
from manifests.errors import InputError
from manifests.progress import progress
from manifests.tables import Manifest
from manifests.typed import Settings

# The singular vectors come from the products of all pairs of words: 130 MB and half a minute at this size.
WORDS = 4096
_BATCH = 1024
_WORD = re.compile(r"\w+")


class LSASettings(Settings):
    """Latent semantic analysis of the train split's captions."""

    name: Literal["lsa"] = "lsa"
    dim: int = Field(128, ge=1, description="numbers a caption, at most as many as the captions say different things")


@TEACHERS.add("lsa")
class LatentSemantics(Teacher):
    """Vectors of captions. Raises `InputError` where the train split has no words."""

    Settings = LSASettings
    reads = "captions"
    fitted = True

    def __init__(self, settings: LSASettings, inputs: Inputs):
        self.failures = {}
        listed = Manifest.open(inputs.manifest)
        texts = listed.texts(0, listed.num_captions)
        train = [texts[n] for n in np.flatnonzero(np.isin(listed.caption_rows, listed.rows_in("train"))).tolist()]
        counts = Counter(word for caption in train for word in _words(caption))
        if not counts:
            raise InputError(
                "the train split's captions have no words",
                where=f"the caption teacher {self.name}",
                fix="choose another teacher in teachers.D.captions.name",
            )
        listed = sorted(counts, key=lambda word: (-counts[word], word))[:WORDS]
        self._place = {word: place for place, word in enumerate(listed)}
        # A last entry stands for all other words, so that no train caption is empty.
        self._width = len(listed) + 1
        self._idf, self._projection = self._fit(train, settings.dim)
        self.dim = self._projection.shape[1]
        self.recipe = {"name": self.name, "dim": self.dim, "words": WORDS, "weights": "tf-idf of the train split"}

    def embed(self, items: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Batches of consecutive captions; one without any known word is zeros."""
        for first in range(0, len(items), _BATCH):
            batch = items[first : first + _BATCH]
            yield list(range(first, first + len(batch))), (self._weighted(batch) @ self._projection).astype(np.float32)

    def _fit(self, train: Sequence[str], dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights ``[V]`` of the words and the projection ``[V, W]``."""
        with_word, products = np.zeros(self._width), np.zeros((self._width, self._width))
        parts = [train[first : first + _BATCH] for first in range(0, len(train), _BATCH)]
        for part in parts:
            with_word += (self._counts(part) > 0).sum(0)
        self._idf = np.log((1 + len(train)) / (1 + with_word)) + 1
        for part in progress(parts, what=f"teachers: {self.name}", unit="batches"):
            weighted = self._weighted(part)
            products += weighted.T @ weighted
        squares, vectors = np.linalg.eigh(products)
        # Beyond the captions' rank directions are arbitrary.
        leading = vectors[:, squares > 1e-9 * squares[-1]][:, ::-1][:, :dim]
        # Their signs are free: the largest number is made positive.
        signs = np.sign(leading[np.abs(leading).argmax(0), np.arange(leading.shape[1])])
        return self._idf, leading * signs

    def _weighted(self, captions: Sequence[str]) -> np.ndarray:
        """TF-IDF of unit length, float64 ``[n, V]``."""
        counts = self._counts(captions)
        weighted = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * self._idf
        return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)

    def _counts(self, captions: Sequence[str]) -> np.ndarray:
        counts = np.zeros((len(captions), self._width))
        for row, caption in enumerate(captions):
            for word in _words(caption) or [""]:
                counts[row, self._place.get(word, -1)] += 1
        return counts


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
