"""Where boxes lie in their image, as numbers that an encoder reads."""

import torch
from torch import Tensor


def box_corners(boxes: Tensor, image_size: Tensor) -> Tensor:
    """(x1, y1, x2, y2, w, h) of boxes, relative to their image: ``[B, R, 6]``, as VinVL's features have them.

    boxes ``[B, R, 4]`` as (x1, y1, x2, y2) and image_size ``[B, 2]`` as (width, height), in pixels.
    """
    scaled = boxes / image_size.repeat(1, 2)[:, None]
    return torch.cat([scaled, scaled[..., 2:] - scaled[..., :2]], dim=-1)


def box_geometry(boxes: Tensor, image_size: Tensor) -> Tensor:
    """(x, y, w, h, w / h, area) of boxes, relative to their image: ``[B, R, 6]``.

    boxes ``[B, R, 4]`` as (x1, y1, x2, y2) and image_size ``[B, 2]`` as (width, height), in pixels; x and y are the
    upper left corner's.
    """
    scaled = boxes / image_size.repeat(1, 2)[:, None]
    corner, sides = scaled[..., :2], scaled[..., 2:] - scaled[..., :2]
    pixels = boxes[..., 2:] - boxes[..., :2]
    ratio = pixels[..., :1] / pixels[..., 1:].clamp(min=1e-6)
    return torch.cat([corner, sides, ratio, sides.prod(-1, keepdim=True)], dim=-1)
