"""What steps read comes once, in order and the same, whether it is read ahead or lies on the device."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.validation import validate
from extract.stores.regions import RegionStore
from tests.train.test_text import kinds, pieces  # noqa: F401 (a fixture)
from tests.train.test_training import SETTINGS
from train.data import RetrievalData
from train.epochs import epochs_of
from train.feed import AHEAD, FedBatch, Feed, _Buffer, _pinned, read_part
from train.processes import Processes, tensors_of
from train.settings import RunSettings
from train.train import run

ALONE = Processes(0, 1, torch.device("cpu"))


def settings(**changes) -> RunSettings:
    return RunSettings(**{**SETTINGS, "batch_size": 48, **changes})


def tensors(part: FedBatch) -> list[torch.Tensor]:
    return [x for batch in (*part.regions, *part.words) for x in tensors_of(batch)] + [part.image]


def feed_of(data: RetrievalData, chosen: RunSettings, resident: str = "off") -> Feed:
    return Feed(data, epochs_of(data, chosen), ALONE, chunks=chosen.accumulate, resident=resident)


@pytest.fixture(scope="module")
def data(dataset: dict[str, Path]) -> RetrievalData:
    return RetrievalData(**dataset, split="train")


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often features of each row of a region store were read into a batch."""
    counted: Counter = Counter()
    padded = RegionStore.padded

    def counting(self: RegionStore, rows, into=np.empty):
        counted.update(rows if into is not None else [])
        return padded(self, rows, into)

    monkeypatch.setattr(RegionStore, "padded", counting)
    return counted


@pytest.mark.parametrize("resident", ["off", "on"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_of_reading_one_after_the_other(data: RetrievalData, resident: str, accumulate: int):
    chosen = settings(accumulate=accumulate)
    epochs = epochs_of(data, chosen)
    assert sum(1 for _ in feed_of(data, chosen, resident)(1, 2)) == len(epochs) - 2
    for part, (captions, regions) in zip(feed_of(data, chosen, resident)(1, 2), epochs(1, 2), strict=True):
        expected = read_part(
            data, captions, lambda own, read=regions: read(own, np.empty), chunks=accumulate, processes=ALONE
        )
        assert (part.captions == captions).all() and len(part.regions) == accumulate
        for own, other in zip(tensors(part), tensors(expected), strict=True):
            assert own.dtype == other.dtype and torch.equal(own, other)


def test_memory_is_used_again_but_not_while_a_step_reads_it(data: RetrievalData):
    places, before = set(), None
    for part in feed_of(data, settings())(0):
        (batch,) = part.regions
        places.add(batch.features.data_ptr())
        if before is not None:
            kept, copy = before
            assert torch.equal(kept, copy)
        before = batch.features, batch.features.clone()
    assert 1 < len(places) <= AHEAD + 2


def test_a_picture_is_read_once_a_caption_under_accumulation_too(data: RetrievalData, rows_read: Counter):
    chosen = settings(accumulate=3)
    shown = Counter(row for part in feed_of(data, chosen)(0) for row in data.caption_image[part.captions].tolist())
    assert sum(rows_read.values()) == sum(shown.values()) == data.num_captions
    assert sorted(rows_read.values()) == sorted(shown.values())


def test_nothing_is_read_again_of_what_lies_on_the_device(data: RetrievalData, rows_read: Counter):
    feed = feed_of(data, settings(), "on")
    rows_read.clear()
    assert sum(len(part.captions) for part in feed(0)) == data.num_captions
    assert not rows_read


def test_a_frozen_encoders_states_lie_on_the_device_too(pieces: dict[str, Path]):  # noqa: F811
    stores = {name: pieces[name] for name in ("manifest", "regions", "tokens", "text_features")}
    data = RetrievalData(**stores, split="train")
    chosen = settings(text={"reads": "text_features"})
    for part, other in zip(feed_of(data, chosen, "on")(0), feed_of(data, chosen)(0), strict=True):
        for own, expected in zip(tensors(part), tensors(other), strict=True):
            assert own.dtype == expected.dtype and torch.equal(own, expected)


def test_a_run_gives_the_same_weights_either_way(dataset: dict[str, Path], tmp_path: Path):
    found = []
    for resident in ("off", "on"):
        out = tmp_path / resident
        run(
            name="test",
            **dataset,
            settings=settings(epochs=1, accumulate=2, losses={"triplet": {"all_negatives_epochs": 1}}),
            validate=lambda model, split: validate(model, split, 64),
            out=out / "model",
            curves=out / "epochs.csv",
            staging=out / "staging",
            resident=resident,
        )
        found.append((out / "model" / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_what_goes_wrong_while_reading_ahead_stops_the_epoch(data: RetrievalData, monkeypatch: pytest.MonkeyPatch):
    chosen, word_batch = settings(), RetrievalData.word_batch
    fourth, _ = list(epochs_of(data, chosen)(0))[3]

    def failing(self: RetrievalData, captions, **keys):
        if np.array_equal(captions, fourth):
            raise OSError("the disk is gone")
        return word_batch(self, captions, **keys)

    monkeypatch.setattr(RetrievalData, "word_batch", failing)
    steps = feed_of(data, chosen)(0)
    for _ in range(3):
        next(steps)
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)


def test_memory_that_was_outgrown_lives_until_the_buffer_is_used_again():
    buffer = _Buffer(torch.device("cpu"))
    first = buffer.memory(10, np.dtype(np.float16))
    first[:] = 1
    second = buffer.memory(1000, np.dtype(np.float16))
    second[:] = 2
    assert (first == 1).all() and [len(kept) for kept in buffer._outgrown] == [0, 20]
    buffer.reuse()
    assert buffer._outgrown == [] and len(buffer.memory(1010, np.dtype(np.float16))) == 1010


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's memory is pinned")
def test_tensors_that_repeat_a_row_are_pinned() -> None:
    assert _pinned(torch.arange(5).expand(3, 5)).is_pinned()
