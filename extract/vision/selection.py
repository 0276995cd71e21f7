"""Selection rules: which of a detector's proposals become a picture's regions.

`bottom_up` is the rule of bottom-up attention (Anderson et al., CVPR 2018). After NMS within each class, a proposal's
confidence is that of its best class. All above a threshold are taken, at least `min_boxes` and at most `max_boxes`.
Fixed 36 is ``min_boxes == max_boxes == 36``. `detections` is Faster R-CNN's own: boxes regressed for a class, NMS
within the class.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, nms, remove_small_boxes

from extract.vision.rcnn.proposals import clipped, decoded

_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_FEW = 1000  # pairs of proposal and class, up to which NMS takes all of them at once
_SOME = 4096  # pairs that NMS takes if those above the threshold leave too few regions


def bottom_up(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    min_boxes: int,
    max_boxes: int,
    nms_threshold: float,
    score_threshold: float,
) -> Tensor:
    """Rows of the proposals to keep, the most confident first.

    Parameters
    ----------
    boxes : proposals ``[P, 4]`` (x1, y1, x2, y2).
    probabilities : foreground class probabilities ``[P, C]``.
    min_boxes, max_boxes : bounds on the number of rows; exactly that many where they are equal and P suffices.
    nms_threshold : IoU above which the weaker of two boxes of one class is suppressed.
    score_threshold : confidence from which a region is kept.

    Returns
    -------
    int64 ``[R]`` with ``min(min_boxes, P) <= R <= max_boxes``. Ties keep the proposals' order.
    """
    # Weaker pairs never suppress stronger ones, so NMS can take the strongest alone: those above the threshold, and
    # where these leave too few, some thousands more. All of them, half a million of 1,600 classes, are rarely needed.
    confidence = boxes.new_zeros(len(boxes))
    for considered, all_positive in _strongest(probabilities, score_threshold):
        confidence = _confidence(boxes, probabilities, considered, nms_threshold)
        if all_positive or (confidence > 0).sum() >= min_boxes:
            break
    else:
        confidence = _confidence_in_all(boxes, probabilities, nms_threshold)
    confident = int((confidence >= score_threshold).sum())
    order = confidence.sort(descending=True, stable=True).indices
    return order[: min(max(confident, min_boxes), max_boxes)]


def _strongest(probabilities: Tensor, score_threshold: float) -> Iterator[tuple[Tensor, bool]]:
    """Masks ``[P, C]`` of the pairs of proposal and class to look at, the fewest first.

    Beside each stands whether it has all pairs above 0. A softmax over 1,600 classes can leave few of them.
    """
    if probabilities.numel() <= _FEW:
        yield probabilities > 0, True
        return
    if (considered := probabilities >= score_threshold).sum() <= 4 * _SOME:
        yield considered, False
    if probabilities.numel() > _SOME:
        least = probabilities.flatten().topk(_SOME).values[-1].clamp(max=score_threshold)
        if (considered := (probabilities >= least) & (probabilities > 0)).sum() <= 4 * _SOME:
            yield considered, bool(least == 0)


def _confidence(boxes: Tensor, probabilities: Tensor, considered: Tensor, nms_threshold: float) -> Tensor:
    """Each proposal's best probability ``[P]`` among its `considered` classes that survive NMS; 0 where none does."""
    rows, classes = considered.nonzero(as_tuple=True)
    scores = probabilities[rows, classes]
    # One call for all classes, each class's boxes moved apart; in double, for that is millions of pixels.
    shifted = boxes.double()
    shifted = shifted[rows] + (classes * (shifted.max() - shifted.min() + 1))[:, None] if len(rows) else shifted[rows]
    kept = nms(shifted, scores.double(), nms_threshold)
    return boxes.new_zeros(len(boxes)).scatter_reduce(0, rows[kept], scores[kept].to(boxes.dtype), reduce="amax")


def _confidence_in_all(boxes: Tensor, probabilities: Tensor, nms_threshold: float) -> Tensor:
    """`_confidence` of all classes: greedy NMS in all C at once, P steps over one overlap matrix."""
    overlap = box_iou(boxes.double(), boxes.double()) > nms_threshold
    overlap.fill_diagonal_(False)
    scores = probabilities.T.contiguous()
    classes = torch.arange(len(scores), device=boxes.device)
    alive = torch.ones_like(scores, dtype=torch.bool)
    kept = torch.zeros_like(alive)
    for best in scores.sort(dim=1, descending=True, stable=True).indices.T:
        here = alive[classes, best]
        kept[classes, best] = here
        alive &= ~(overlap[best] & here[:, None])
    return scores.masked_fill(~kept, 0).amax(0).to(boxes.dtype)


def detections(
    proposals: Tensor,
    probabilities: Tensor,
    deltas: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    max_boxes: int,
    box_weights: tuple[float, float, float, float] = _BOX_WEIGHTS,
    least_side: float = 0.0,
    inclusive: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Final detections, the most confident first.

    Parameters
    ----------
    proposals : ``[P, 4]`` (x1, y1, x2, y2) in the network's picture, whose (height, width) is `image_size`.
    probabilities : foreground class probabilities ``[P, C]``.
    deltas : box deltas of every class, ``[P, 4 C]``, times `box_weights`.
    least_side : pixels; a regressed box with a shorter side is dropped before NMS.
    inclusive : whether boxes end with their last pixel.

    Returns
    -------
    the proposal ``[N]`` each came from, its class ``[N]`` and its regressed box ``[N, 4]``.
    """
    rows, classes = (probabilities > score_threshold).nonzero(as_tuple=True)
    own = deltas.view(*probabilities.shape, 4)[rows, classes]
    boxes = clipped(decoded(BoxCoder(box_weights), own, proposals[rows], inclusive), image_size, inclusive)
    if least_side:
        large = remove_small_boxes(boxes, least_side)
        rows, classes, boxes = rows[large], classes[large], boxes[large]
    kept = batched_nms(boxes, probabilities[rows, classes], classes, nms_threshold)[:max_boxes]
    return rows[kept], classes[kept], boxes[kept]
