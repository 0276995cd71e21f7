"""The parameters of the authors' models by our names: one table of names a base (`Base.published`).

An authors' model is two encoders with parameters of their own names. SelfAlign's have the context's parameters beside
the base's in both; VSRN's caption decoder is a third part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from train.losses import LOSSES
from train.losses.loss import Loss, Side
from train.model import RetrievalModel


@dataclass(frozen=True, slots=True)
class Matched:
    """The parameters of a file, matched with a model's.

    weights : by our names, in our shapes.
    missing : ours that encode and that the file lacks.
    unexpected : theirs that no table knows.
    absent : theirs that a table knows and the model lacks.
    mismatched : ours that have another shape in the file, a sentence each.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)


def matched(model: RetrievalModel, parts: Mapping[Side | None, Mapping[str, Tensor]]) -> Matched:
    """The published parameters of each encoder, and of the caption decoder (None), as a model's."""
    found, shapes = Matched(), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    used = set()
    for side, tensors in parts.items():
        names = names_of(model, side)
        for theirs, tensor in tensors.items():
            begin = max((begin for begin in names if theirs.startswith(begin)), key=len, default=None)
            if begin is not None and names[begin] is None:
                continue
            ours = None if begin is None else names[begin] + theirs.removeprefix(begin)
            if ours not in shapes:
                (found.unexpected if begin is None else found.absent).append(theirs)
                continue
            used.add(ours)
            if tensor.dim() == len(shapes[ours]) + 1 and tensor.shape[-1] == 1:  # a convolution of width 1
                tensor = tensor.squeeze(-1)
            if tuple(tensor.shape) != shapes[ours]:
                found.mismatched.append(f"{theirs} is {list(tensor.shape)}, {ours} is {list(shapes[ours])}")
            else:
                found.weights[ours] = tensor
    needed = (name for name in shapes if encodes(model, name) and not name.endswith("num_batches_tracked"))
    found.missing.extend(name for name in needed if name not in used)
    return found


def names_of(model: RetrievalModel, side: Side | None) -> dict[str, str | None]:
    """Beginnings of published names with those of ours; None: of what nothing reads."""
    names: dict[str, str | None] = {}
    if side:
        published = model.base.published()
        names |= {theirs: f"base.{ours}" for theirs, ours in getattr(published, side).items()}
        names |= dict.fromkeys(published.unread)
    for name, loss in model.losses.items():
        names |= {theirs: f"losses.{name}.{ours}" for theirs, ours in _of_loss(loss, side).items()}
    return names


def losses_of(names: Mapping[Side | None, list[str]], model: RetrievalModel) -> list[str]:
    """The losses that a model hasn't and that published names belong to."""
    return [
        other
        for other, loss in sorted(LOSSES.load().items())
        if other not in model.losses
        and any(name.startswith(begin) for side, own in names.items() for begin in _of_loss(loss, side) for name in own)
    ]


def encodes(model: RetrievalModel, name: str) -> bool:
    """Whether a parameter has a part in what images and captions become."""
    if not name.startswith("losses."):
        return True
    _, loss, *_ = name.split(".")
    return type(model.losses[loss]).added_dims(model.losses[loss].options, 1) > 0


def _of_loss(loss: Loss | type[Loss], side: Side | None) -> dict[str, str]:
    chosen = {theirs: ours for theirs, ours in loss.published.items() if ("{side}" in ours) == (side is not None)}
    return {theirs: ours.format(side=side) for theirs, ours in chosen.items()}
