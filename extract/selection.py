"""Selection rules: which of a detector's proposals become a picture's regions.

`bottom_up` is the rule of bottom-up attention (Anderson et al., CVPR 2018): NMS within each class, the best class
confidence of what survives, everything above a threshold, but never fewer than `min_boxes` nor more than `max_boxes`.
Fixed 36 is ``min_boxes == max_boxes == 36``.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms


def bottom_up(
    boxes: Tensor, probabilities: Tensor, *, min_boxes: int, max_boxes: int, nms_threshold: float, score_threshold: float
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
    confidence = _confidence(boxes, probabilities, probabilities >= score_threshold, nms_threshold)
    wanted = int((confidence > 0).sum())
    if wanted < min_boxes:
        confidence = _confidence(boxes, probabilities, torch.ones_like(probabilities, dtype=torch.bool), nms_threshold)
    order = confidence.sort(descending=True, stable=True).indices
    return order[: min(max(wanted, min_boxes), max_boxes)]


def _confidence(boxes: Tensor, probabilities: Tensor, considered: Tensor, nms_threshold: float) -> Tensor:
    """Each proposal's best probability ``[P]`` among its `considered` classes that survive NMS; 0 where none does."""
    rows, classes = considered.nonzero(as_tuple=True)
    scores = probabilities[rows, classes]
    # In double: batched_nms moves each class's boxes apart, by up to millions of pixels with 1,600 classes.
    kept = batched_nms(boxes[rows].double(), scores.double(), classes, nms_threshold)
    return boxes.new_zeros(len(boxes)).scatter_reduce(0, rows[kept], scores[kept].to(boxes.dtype), reduce="amax")
