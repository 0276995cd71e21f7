"""Machine settings: how fast an artifact is made, never what is computed (device and batch move the last bits).

They live in the environment as ``SELFALIGN_*`` and are shown by ``selfalign doctor``. They are never in `params.yaml`
or in a stage's command: there every machine would invalidate everybody's features.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from manifests.errors import InputError

PREFIX = "SELFALIGN_"
_ADDRESS = r"(?!(local|slurm):)([a-z]+://)?([\w.-]+|\[[\da-f:]+\]):\d+"
_CLUSTER = re.compile(rf"none|slurm(:[1-9]\d*)?|local:[1-9]\d*|{_ADDRESS}")


class Machine(BaseModel):
    """This machine's settings; each field ``x`` is the environment variable ``SELFALIGN_X``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field("auto", description="torch device; auto is CUDA where there is one, else the CPU")
    threads: int = Field(os.cpu_count() or 1, ge=1, description="threads of torch's operators on the CPU")
    batch: int = Field(16, ge=1, description="pictures a batch in extraction")
    encode_batch: int = Field(256, ge=1, description="images or captions a batch in evaluation and text features")
    readers: int = Field(2, ge=1, description="threads that read and decode pictures")
    staging: Path = Field(Path(".staging"), description="folder of unfinished stores and runs")
    cache: Path = Field(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "selfalign"),
        description="folder of what was computed once: shared by clones, data sets and colleagues on one disk",
    )
    cache_gb: float = Field(200, ge=0, description="GB of the cache that nothing else holds: more is removed")
    exact: bool = Field(False, description="take from the cache only what this device, batch and libraries computed")
    processes: int = Field(1, ge=1, description="processes that train together, one a GPU")
    checkpoint_minutes: float = Field(10, ge=0, description="minutes after which a run's state is saved in mid-epoch")
    resident: Literal["auto", "on", "off"] = Field(
        "auto", description="training's features on the device: auto keeps them on a GPU where they fit"
    )
    tensorboard: Path | None = Field(None, description="folder for TensorBoard's curves of training")
    cluster: str = Field("none", description="who extracts: none, local:N, a Dask scheduler's address, slurm:N")

    @field_validator("cluster")
    @classmethod
    def _known_cluster(cls, value: str) -> str:
        if _CLUSTER.fullmatch(value):
            return value
        message = "{value} is not none, local:N, slurm:N or an address like tcp://host:8786"
        raise PydanticCustomError("cluster", message, {"value": repr(value)})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; `InputError` names a variable that is unknown or has a wrong value."""
        values = {
            name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)
        }
        unknown = sorted(set(values) - set(cls.model_fields))
        if unknown:
            close = difflib.get_close_matches(unknown[0], list(cls.model_fields), n=1)
            hint = f" (did you mean {PREFIX}{close[0].upper()}?)" if close else ""
            raise InputError(
                f"no such setting{hint}",
                where=f"environment variable {PREFIX}{unknown[0].upper()}",
                fix="unset it; `selfalign doctor` lists all settings",
            )
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                first["msg"],
                where=f"environment variable {PREFIX}{str(first['loc'][0]).upper()}",
                fix="correct its value",
            ) from None

    def torch_device(self) -> str:
        """The torch device to use, with torch's thread count set on the way."""
        import torch

        from extract.engine.device import torch_device

        torch.set_num_threads(self.threads)
        return torch_device(self.device)
