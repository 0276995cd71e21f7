"""From a region proposal network's raw outputs to proposals, for every detector in this folder.

Detectron2's order of work: the best `before` by objectness, decode, clip, drop empty boxes, NMS, the best `after`.
One rule is added: when NMS leaves fewer than `at_least`, the best suppressed proposals fill up, so that a fixed
number of regions can be promised for any picture, a 1x1 one included.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms

_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))


def propose(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    image_size: tuple[int, int],
    *,
    before: int,
    after: int,
    at_least: int,
    nms_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Proposals of one picture, best first.

    Parameters
    ----------
    objectness : logits ``[A]``.
    deltas : ``[A, 4]``, relative to `anchors` ``[A, 4]`` (x1, y1, x2, y2) in the network's picture.
    image_size : (height, width) of that picture.
    before, after : how many to keep before and after NMS.
    at_least : how many proposals to return at the least.

    Returns
    -------
    boxes ``[P, 4]`` (x1, y1, x2, y2) and their objectness ``[P]``, with ``at_least <= P <= after`` wherever the
    picture has that many anchors.
    """
    scores, order = objectness.topk(min(before, len(objectness)))
    boxes = _coder.decode_single(deltas[order], anchors[order])
    boxes = clip_boxes_to_image(boxes, image_size)
    valid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores = boxes[valid], scores[valid]
    kept = nms(boxes, scores, nms_threshold)[:after]
    if len(kept) < min(at_least, len(boxes)):
        suppressed = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        suppressed[kept] = False
        fill = suppressed.nonzero().squeeze(1)[: at_least - len(kept)]
        kept = torch.cat([kept, fill]).sort().values
    return boxes[kept], scores[kept]
