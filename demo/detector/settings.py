"""The parameters of the stage `detector`, as `params.yaml` gives them."""

from pydantic import Field

from manifests.typed import Settings


class DetectorTrainingSettings(Settings):
    """How the demo's detector is trained; `seed` must differ from the scenes' seed."""

    seed: int = Field(ge=0)
    iterations: int = Field(750, ge=1)
    batch_size: int = Field(16, ge=1, description="scenes a step")
    learning_rate: float = Field(2e-3, gt=0, description="the peak of a one-cycle schedule")
