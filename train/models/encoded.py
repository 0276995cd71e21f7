"""What a base makes of one side of a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """A base's view of B images or captions.

    local ``[B, N, D]`` : projected regions or words before any context, of unit length: LCA's inputs.
    contextual ``[B, N, D]`` : the same after context: CRA's inputs.
    pooled ``[B, D]`` : the base's own embedding, of unit length.
    """

    local: Tensor
    contextual: Tensor
    pooled: Tensor
