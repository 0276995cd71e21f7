"""From a region proposal network's raw outputs to proposals, for every detector in this folder.

Detectron2's order of work: the best `before` by objectness, decode, clip, drop empty boxes, NMS, the best `after`.
One rule is added: when NMS leaves fewer than `at_least`, the best suppressed proposals fill up. So any picture has a
fixed number of regions, a 1x1 one included.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))


def decoded(coder: BoxCoder, deltas: Tensor, boxes: Tensor, inclusive: bool) -> Tensor:
    """Boxes ``[N, 4]`` moved by deltas. Where they end with their last pixel, they are one wider than x2 - x1."""
    last = boxes.new_tensor([0.0, 0.0, inclusive, inclusive])
    return coder.decode_single(deltas, boxes + last) - last if inclusive else coder.decode_single(deltas, boxes)


def clipped(boxes: Tensor, image_size: tuple[int, int], inclusive: bool) -> Tensor:
    """Boxes ``[N, 4]`` within a picture of (height, width)."""
    return clip_boxes_to_image(boxes, (image_size[0] - inclusive, image_size[1] - inclusive))


def propose(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_size: tuple[int, int],
    *,
    before: int,
    after: int,
    at_least: int,
    nms_threshold: float,
    least_side: float = 0.0,
    inclusive: bool = False,
) -> tuple[Tensor, Tensor]:
    """Proposals of one picture, best first.

    Parameters
    ----------
    objectness : a level's logits ``[A]`` each; one level without a pyramid.
    deltas : ``[A, 4]`` each, relative to `anchors` ``[A, 4]`` (x1, y1, x2, y2) in the network's picture.
    image_size : (height, width) of that picture.
    before, after : how many to keep of each level before NMS, and of all after it; levels don't suppress each other.
    at_least : how many proposals to return at the least.
    least_side : pixels that both sides of a proposal must exceed.
    inclusive : whether boxes, anchors too, end with their last pixel.

    Returns
    -------
    boxes ``[P, 4]`` (x1, y1, x2, y2) and their objectness ``[P]``, with ``at_least <= P <= after`` wherever the
    picture has that many anchors.
    """
    best = [logits.topk(min(before, len(logits))) for logits in objectness]
    boxes = torch.cat(
        [decoded(_coder, d[b.indices], a[b.indices], inclusive) for b, d, a in zip(best, deltas, anchors, strict=True)]
    )
    scores = torch.cat([b.values for b in best])
    levels = torch.cat([torch.full_like(b.indices, level) for level, b in enumerate(best)])
    boxes = clipped(boxes, image_size, inclusive)
    valid = (boxes[:, 2:] + inclusive - boxes[:, :2] > least_side).all(1)
    boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
    kept = batched_nms(boxes, scores, levels, nms_threshold)[:after]
    if len(kept) < min(at_least, len(boxes)):
        suppressed = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        suppressed[kept] = False
        rest = suppressed.nonzero().squeeze(1)
        fill = rest[scores[rest].argsort(descending=True, stable=True)][: at_least - len(kept)]
        kept = torch.cat([kept, fill])
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return boxes[kept], scores[kept]
