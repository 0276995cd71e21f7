"""The selection rule and the proposals, against plain loops."""

import pytest
import torch
from torch import Tensor

from extract.vision.rcnn.proposals import propose
from extract.vision.selection import _confidence_in_all, bottom_up


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def slow_bottom_up(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    min_boxes: int,
    max_boxes: int,
    nms_threshold: float,
    score_threshold: float,
) -> list[int]:
    """Anderson et al.'s rule, class by class and box by box."""
    box, probability = boxes.tolist(), probabilities.tolist()
    threshold = torch.tensor(score_threshold).item()
    confidence = [0.0] * len(box)
    for c in range(probabilities.shape[1]):
        kept: list[int] = []
        for row in sorted(range(len(box)), key=lambda row: (-probability[row][c], row)):
            if all(iou(box[row], box[other]) <= nms_threshold for other in kept):
                kept.append(row)
                confidence[row] = max(confidence[row], probability[row][c])
    expected = sum(value >= threshold for value in confidence)
    order = sorted(range(len(box)), key=lambda row: (-confidence[row], row))
    return order[: min(max(expected, min_boxes), max_boxes)]


def random_boxes(generator: torch.Generator, count: int, side: int) -> Tensor:
    """Whole-pixel boxes that overlap a lot."""
    corner = torch.randint(0, side // 2, (count, 2), generator=generator)
    extent = torch.randint(side // 8, side // 2, (count, 2), generator=generator)
    return torch.cat([corner, corner + extent], 1).float()


@pytest.mark.parametrize("classes", [6, 60])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "rule",
    [
        {"min_boxes": 12, "max_boxes": 12, "nms_threshold": 0.3, "score_threshold": 0.2},
        {"min_boxes": 3, "max_boxes": 20, "nms_threshold": 0.3, "score_threshold": 0.2},
        {"min_boxes": 1, "max_boxes": 40, "nms_threshold": 0.5, "score_threshold": 0.05},
        {"min_boxes": 10, "max_boxes": 15, "nms_threshold": 0.1, "score_threshold": 0.7},
        {"min_boxes": 60, "max_boxes": 90, "nms_threshold": 1.0, "score_threshold": 0.3},
    ],
)
def test_bottom_up_equals_the_plain_loop(seed: int, rule: dict, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, 40, 160)
    probabilities = (2 * torch.randn(40, classes, generator=generator)).softmax(1)
    assert bottom_up(boxes, probabilities, **rule).tolist() == slow_bottom_up(boxes, probabilities, **rule)


@pytest.mark.parametrize("spread", [3.0, 0.0], ids=["spread", "all equal"])
@pytest.mark.parametrize("least", [36, 150])
def test_a_thousand_classes_are_settled_as_all_pairs_are(spread: float, least: int) -> None:
    """Most regions come from the strongest pairs alone; where these are too few or all equal, from all of them."""
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(generator, 160, 600)
    probabilities = (spread * torch.randn(160, 1200, generator=generator)).softmax(1)
    rule = {"min_boxes": least, "max_boxes": least, "nms_threshold": 0.3, "score_threshold": 0.2}
    all_pairs = _confidence_in_all(boxes, probabilities, 0.3).sort(descending=True, stable=True).indices
    assert bottom_up(boxes, probabilities, **rule).tolist() == all_pairs[:least].tolist()


@pytest.mark.parametrize("least", [120, 150])
def test_classes_of_probability_0_are_not_looked_at(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharp softmax leaves a few classes above 0; the slow way through all pairs isn't needed for the rest."""
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(generator, 160, 600)
    logits = 100 * torch.randn(160, 1200, generator=generator)
    logits[:, :2] += 400  # most proposals have one of two classes, and suppress each other
    probabilities = logits.softmax(1)
    assert 160 < (probabilities > 0).sum() < 16_000
    rule = {"min_boxes": least, "max_boxes": least, "nms_threshold": 0.3, "score_threshold": 0.2}
    all_pairs = _confidence_in_all(boxes, probabilities, 0.3).sort(descending=True, stable=True).indices
    monkeypatch.delattr("extract.vision.selection._confidence_in_all")
    assert bottom_up(boxes, probabilities, **rule).tolist() == all_pairs[:least].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_ties_keep_the_proposals_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, 12, 64).repeat(4, 1)
    probabilities = torch.randint(1, 5, (48, 3), generator=generator) / 8
    rule = {"min_boxes": 5, "max_boxes": 30, "nms_threshold": 0.3, "score_threshold": 0.5}
    chosen = bottom_up(boxes, probabilities, **rule).tolist()
    assert chosen == slow_bottom_up(boxes, probabilities, **rule)
    assert chosen == bottom_up(boxes.clone(), probabilities.clone(), **rule).tolist()


def test_overlap_of_exactly_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    probabilities = torch.tensor([[0.9], [0.8]])
    rule = {"min_boxes": 1, "max_boxes": 5, "score_threshold": 0.2}
    assert bottom_up(boxes, probabilities, nms_threshold=0.5, **rule).tolist() == [0, 1]
    assert bottom_up(boxes, probabilities, nms_threshold=0.499, **rule).tolist() == [0]


def test_class_number_does_not_blur_the_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 900
    side = 20 + 10 * torch.rand(200, 1, generator=generator)
    shift = side * (1 - 0.3) / (1 + 0.3)  # gives an overlap of 0.3
    nudge = torch.cat([shift + (torch.rand(200, 1, generator=generator) - 0.5) * 0.02, torch.zeros(200, 1)], 1)
    pairs = torch.stack([torch.cat([c, c + side], 1) for c in (corner, corner + nudge)], 1)
    rule = {"min_boxes": 1, "max_boxes": 2, "nms_threshold": 0.3, "score_threshold": 0.2}
    for pair in pairs:
        probabilities = torch.zeros(2, 1600)
        probabilities[:, 1599] = torch.tensor([0.9, 0.8])
        assert len(bottom_up(pair, probabilities, **rule)) == (2 if iou(*pair.tolist()) <= 0.3 else 1)


def test_fewer_proposals_than_asked_for_are_all_kept() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3)
    rule = {"min_boxes": 12, "max_boxes": 12, "nms_threshold": 0.3, "score_threshold": 0.2}
    assert bottom_up(boxes, torch.tensor([[0.1], [0.3], [0.2]]), **rule).tolist() == [1, 0, 2]
    assert bottom_up(boxes[:0], torch.zeros(0, 1), **rule).tolist() == []


def proposed(anchors: list[list[float]], objectness: list[float], **limits: int) -> list[list[float]]:
    """Boxes proposed in a picture of 100 x 80 pixels, without deltas."""
    limits = {"before": 100, "after": 100, "at_least": 1} | limits
    deltas = torch.zeros(len(anchors), 4)
    boxes, scores = propose(
        [torch.tensor(objectness)], [deltas], [torch.tensor(anchors)], (80, 100), nms_threshold=0.7, **limits
    )
    assert len(boxes) == len(scores) and scores.tolist() == sorted(scores.tolist(), reverse=True)
    return boxes.tolist()


CROWD = [[10.0, 10.0, 50.0 + i, 50.0] for i in range(4)]  # all overlap by more than 0.7
ALONE = [60.0, 60.0, 90.0, 75.0]


def test_nms_keeps_the_best_of_a_crowd() -> None:
    assert proposed([*CROWD, ALONE], [1.0, 4.0, 3.0, 2.0, 0.5]) == [CROWD[1], ALONE]


def test_at_least_fills_up_with_the_best_suppressed_in_order_of_score() -> None:
    assert proposed([*CROWD, ALONE], [1.0, 4.0, 3.0, 2.0, 0.5], at_least=4) == [CROWD[1], CROWD[2], CROWD[3], ALONE]
    assert len(proposed([*CROWD, ALONE], [1.0, 4.0, 3.0, 2.0, 0.5], at_least=9)) == 5


def test_before_and_after_are_bounds() -> None:
    disjoint = [[10.0 * i, 0.0, 10.0 * i + 8, 8.0] for i in range(6)]
    scores = [1.0, 6.0, 2.0, 5.0, 3.0, 4.0]
    assert proposed(disjoint, scores, after=2) == [disjoint[1], disjoint[3]]
    assert proposed([*CROWD, ALONE], [4.0, 3.0, 2.0, 1.5, 1.0], before=4) == [CROWD[0]]


def test_boxes_are_clipped_and_empty_ones_dropped() -> None:
    anchors = [[-20.0, -10.0, 30.0, 30.0], [120.0, 10.0, 160.0, 50.0], [90.0, 70.0, 130.0, 110.0]]
    assert proposed(anchors, [1.0, 3.0, 2.0], at_least=3) == [[90.0, 70.0, 100.0, 80.0], [0.0, 0.0, 30.0, 30.0]]
