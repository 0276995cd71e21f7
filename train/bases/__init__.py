"""Bases: one interface (`base.Base`), one file a base, by name in `BASES`."""

from typing import Any

from manifests.registry import Registry

BASES: Registry[Any] = Registry("base", "train.bases")
