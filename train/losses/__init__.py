"""Losses: one interface (`loss.Loss`), one file a loss, by name in `LOSSES`."""

from typing import Any

from manifests.registry import Registry

LOSSES: Registry[Any] = Registry("loss", "train.losses")
