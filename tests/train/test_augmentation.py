"""Size augmentation: how many regions and words it takes, and that what is left is in its order."""

import torch

from train.bases.augmentation import fewer_regions, noisy_words
from train.batches import RegionBatch, WordBatch
from train.words import Words

ROWS, WIDTH = 400, 12


def mask_of() -> torch.Tensor:
    return torch.arange(WIDTH) < (1 + torch.arange(ROWS) % WIDTH)[:, None]


def test_a_share_of_the_regions_is_dropped_and_one_stays() -> None:
    torch.manual_seed(0)
    mask = mask_of()
    batch = RegionBatch(torch.randn(ROWS, WIDTH, 3), torch.ones(ROWS, WIDTH, 4), torch.ones(ROWS, 2), mask)
    kept = fewer_regions(batch, 0.2).mask
    assert not (kept & ~mask).any() and kept.any(1).all()
    assert abs(1 - kept[mask.sum(1) > 3].sum() / mask[mask.sum(1) > 3].sum() - 0.2) < 0.03
    assert torch.equal(fewer_regions(batch, 0.0).mask, mask)


def words(mask_id: int | None) -> Words:
    found = Words()
    found.mask_id, found.vocabulary_size, found.first_word = mask_id, 100, 50
    return found


def piece_batch() -> WordBatch:
    """Words of two pieces each: piece n of a caption has id 10 + n. CLS 2 comes first, a full stop 7 and SEP 3 last."""
    mask = mask_of()
    place = torch.arange(1, WIDTH + 1).expand(ROWS, -1) * mask
    ids = (torch.arange(WIDTH) + 10).expand(ROWS, -1) * mask
    pieces = torch.full((ROWS, WIDTH + 3), -1)
    for row, length in enumerate(mask.sum(1).tolist()):
        pieces[row, : length + 3] = torch.tensor([2, *ids[row, :length].tolist(), 7, 3])
    word = torch.arange(WIDTH).div(2, rounding_mode="floor").expand(ROWS, -1) * mask
    return WordBatch(ids, ids.byte(), mask, word, pieces=pieces, place=place)


def test_words_are_masked_replaced_or_dropped_with_all_their_pieces() -> None:
    torch.manual_seed(0)
    batch = piece_batch()
    found = noisy_words(batch, 0.2, words(mask_id=4))
    counts = {"masked": 0, "replaced": 0, "dropped": 0, "all": int(batch.mask.sum())}
    for row in range(ROWS):
        length = int(found.mask[row].sum())
        assert length >= 1 and not found.mask[row, length:].any()
        ids, origin = found.words[row, :length].tolist(), found.pos[row, :length].tolist()
        assert origin == sorted(origin)  # what is left is in its order, and each keeps its part of speech
        pieces = found.pieces[row][found.pieces[row] >= 0].tolist()
        assert pieces == [2, *ids, 7, 3]
        assert [pieces[place] for place in found.place[row, :length].tolist()] == ids
        changed = {number // 2 - 5 for number, own in zip(origin, ids, strict=True) if own != number}
        for number, own in zip(origin, ids, strict=True):
            if (number - 10) // 2 in changed:
                assert own == 4 or own >= 50
            counts["masked"] += own == 4
            counts["replaced"] += own >= 50
        counts["dropped"] += int(batch.mask[row].sum()) - length
    shares = {name: count / counts["all"] for name, count in counts.items()}
    assert abs(shares["masked"] - 0.1) < 0.02 and abs(shares["replaced"] - 0.02) < 0.01
    assert abs(shares["dropped"] - 0.08) < 0.02


def test_words_that_can_not_be_masked_are_dropped() -> None:
    torch.manual_seed(0)
    batch = piece_batch()
    found = noisy_words(batch, 0.2, words(mask_id=None))
    assert ((found.words >= 10) & (found.words < 50))[found.mask].all()
    assert abs(1 - found.mask.sum() / batch.mask.sum() - 0.2) < 0.03
