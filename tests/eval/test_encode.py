"""One pass: every image and caption is encoded once, and what is held above the results doesn't grow with the split."""

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval import alignments
from eval.survey import survey
from manifests.schema import ImageRow
from train.batches import RegionBatch, WordBatch
from train.data import Word
from train.model import RetrievalModel, build_model
from train.settings import RunSettings

R, T, F, V, EACH, D = 12, 6, 16, 50, 2, 48


class Made:
    """N images of two captions, with what one pass asks of `RetrievalData`."""

    def __init__(self, images: int):
        self.images = [ImageRow(f"{n}", "test", f"{n}.jpg", f"{n:064d}", 9, 9) for n in range(images)]
        self.num_captions, self.caption_image = EACH * images, np.arange(images).repeat(EACH)

    def caption_text(self, caption: int) -> str:
        return f"caption {caption}"

    def caption_words(self, caption: int) -> list[Word]:
        return [Word("word", n, n + 1, "NOUN") for n in range(T)]

    def region_counts(self) -> np.ndarray:
        return np.full(len(self.images), R)

    def region_batch(self, images) -> RegionBatch:
        features = np.random.default_rng(images[0]).standard_normal((len(images), R, F), np.float32)
        boxes = torch.ones(len(images), R, 4)
        mask = torch.ones(len(images), R, dtype=torch.bool)
        return RegionBatch(torch.from_numpy(features), boxes, torch.ones(len(images), 2), mask)

    def word_batch(self, captions) -> WordBatch:
        words = torch.from_numpy(np.random.default_rng(captions[0]).integers(5, V, (len(captions), T)))
        mask = torch.ones_like(words) > 0
        return WordBatch(words, torch.zeros_like(words, dtype=torch.uint8), mask, torch.arange(T).expand_as(words))


def model_of(**losses) -> RetrievalModel:
    settings = RunSettings(
        dataset="made",
        epochs=1,
        base={"name": "vsrn", "dim": D, "graph_layers": 1},
        text={"reads": "tokens", "word_dim": 8},
        losses={"triplet": {}, "lca": {"num_concepts": 8}, **losses},
    )
    torch.manual_seed(0)
    return build_model(settings, F, V)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive together."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:  # no view
                storage = StorageWeakRef(tensor.untyped_storage())
                self._alive[storage.cdata] = storage, tensor.untyped_storage().nbytes()
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


def held(model: RetrievalModel, images: int) -> float:
    """Bytes above the results at the worst moment of a pass."""
    data = Made(images)
    gc.collect()
    tracemalloc.start()
    with LiveBytes() as counted:
        found = survey(model, data, 50, run="made", quiet=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = found.embeddings.pooled, found.embeddings.context, found.embeddings.captions
    return counted.most + max(0, most - sum(array.nbytes for array in arrays))


@pytest.mark.parametrize("losses", [{}, {"alignment": {}}], ids=["student", "teacher"])
def test_memory_above_the_results_does_not_grow_with_the_split(losses: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alignments, "CHECKED", 512)  # less than the fewest vectors
    model = model_of(**losses)
    survey(model, Made(50), 50, run="made", quiet=True)  # imports, which take memory once
    few, more, most = (held(model, images) for images in (200, 400, 800))
    locals_of = 4 * D * (R + EACH * T)  # bytes of an image's and its captions' vectors
    # Ids, texts and numbers of rows grow: less than a seventh of the vectors.
    assert most - few < 600 * locals_of / 7 and most - more < 400 * locals_of / 7, (few, more, most)


def test_every_image_and_caption_is_encoded_once(monkeypatch: pytest.MonkeyPatch):
    model, counted = model_of(alignment={}), Counter()

    def count(name: str, encode: Callable) -> None:
        def counting(batch):
            counted[name] += len(batch.mask)
            return encode(batch)

        monkeypatch.setattr(model, name, counting)

    for name in ("encode_images", "encode_captions"):
        count(name, getattr(model, name))
    found = survey(model.train(), Made(50), 16, run="made", truth={}, quiet=True)
    assert counted == {"encode_images": 50, "encode_captions": 100} and model.training
    assert len(found.pairs.matches.caption) == 100 * T and len(found.pairs.concepts.concept) == 50 * R
    assert found.teacher.num_images == 50 and found.teacher.num_captions == 100


def test_what_passes_is_what_encoding_all_at_once_gives():
    model, data = model_of(alignment={}), Made(10)
    found = survey(model, data, 16, run="made", truth={}, quiet=True)
    with torch.inference_mode():
        seen = model.eval().encode_images(data.region_batch(range(10)))
        parts = [data.word_batch(range(16)), data.word_batch(range(16, 20))]
        read = [model.encode_captions(part) for part in parts]
    torch.testing.assert_close(torch.from_numpy(found.embeddings.pooled), seen.pooled)
    torch.testing.assert_close(torch.from_numpy(found.embeddings.captions), torch.cat([x.embedding for x in read]))
    best = torch.cat([x.locals for x in read]) @ seen.locals[data.caption_image].transpose(1, 2)
    assert np.array_equal(found.pairs.matches.region, best.argmax(-1).flatten().numpy())
    regions, mask = found.teacher.regions.padded([3, 7])
    torch.testing.assert_close(regions, seen.contextual[[3, 7]])
    assert mask.all() and found.teacher.words.count.tolist() == [T] * 20
