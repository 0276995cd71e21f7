"""A metric: an evaluated run in, figures by name out."""

from abc import ABC, abstractmethod
from typing import ClassVar

from eval.evaluated import Evaluated
from manifests.typed import Settings


class MetricSettings(Settings):
    """The keys of a metric that has none."""


class Metric(ABC):
    """Figures of a run beside its recalls.

    Parameters
    ----------
    settings : of the type `Settings`.

    Attributes
    ----------
    place : keys below which ``figures.json`` has the figures.
    """

    Settings: ClassVar[type[Settings]] = MetricSettings
    place: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, settings: Settings):
        self.settings = settings

    @abstractmethod
    def figures(self, run: Evaluated) -> dict[str, float] | str | None:
        """The figures by name; or a text that says why there are none; or None where the question isn't asked."""

    def lacking(self) -> str | None:
        """What this machine lacks, in words; None if nothing."""
        return None
