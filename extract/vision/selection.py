"""Selection rules: which of a detector's proposals become a picture's regions.

`bottom_up` is the rule of bottom-up attention (Anderson et al., CVPR 2018): NMS within each class, the best class
confidence of what survives, everything above a threshold, but never fewer than `min_boxes` nor more than `max_boxes`.
Fixed 36 is ``min_boxes == max_boxes == 36``. `detections` is Faster R-CNN's own: boxes regressed for a class, NMS
within the class.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_FEW = 1000  # pairs of proposal and class, up to which batched_nms settles all of them in one call


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
    # Weaker pairs never suppress stronger ones, so the pairs above the threshold can be settled alone; the rest (with
    # 1,600 classes nearly all of them) are looked at only where the threshold leaves too few.
    strong = probabilities >= score_threshold
    if probabilities.numel() <= _FEW:
        confidence = _confidence(boxes, probabilities, torch.ones_like(strong), nms_threshold)
    else:
        confidence = _confidence(boxes, probabilities, strong, nms_threshold)
        if (confidence > 0).sum() < min_boxes:
            confidence = _confidence_in_all(boxes, probabilities, nms_threshold)
    wanted = int((confidence >= score_threshold).sum())
    order = confidence.sort(descending=True, stable=True).indices
    return order[: min(max(wanted, min_boxes), max_boxes)]


def _confidence(boxes: Tensor, probabilities: Tensor, considered: Tensor, nms_threshold: float) -> Tensor:
    """Each proposal's best probability ``[P]`` among its `considered` classes that survive NMS; 0 where none does."""
    rows, classes = considered.nonzero(as_tuple=True)
    scores = probabilities[rows, classes]
    # In double: batched_nms moves each class's boxes apart, by up to millions of pixels with 1,600 classes.
    kept = batched_nms(boxes[rows].double(), scores.double(), classes, nms_threshold)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Final detections, the most confident first.

    Parameters
    ----------
    proposals : ``[P, 4]`` (x1, y1, x2, y2) in the network's picture, whose (height, width) is `image_size`.
    probabilities : foreground class probabilities ``[P, C]``.
    deltas : box deltas of every class, ``[P, 4 C]``, times `box_weights`.
    least_side : pixels; a regressed box with a shorter side is dropped before NMS.

    Returns
    -------
    the proposal ``[N]`` each came from, its class ``[N]`` and its regressed box ``[N, 4]``.
    """
    rows, classes = (probabilities > score_threshold).nonzero(as_tuple=True)
    own = deltas.view(*probabilities.shape, 4)[rows, classes]
    boxes = clip_boxes_to_image(BoxCoder(box_weights).decode_single(own, proposals[rows]), image_size)
    if least_side:
        large = remove_small_boxes(boxes, least_side)
        rows, classes, boxes = rows[large], classes[large], boxes[large]
    kept = batched_nms(boxes, probabilities[rows, classes], classes, nms_threshold)[:max_boxes]
    return rows[kept], classes[kept], boxes[kept]
