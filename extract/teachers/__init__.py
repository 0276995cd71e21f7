"""Uni-modal teachers: one interface (`teacher.Teacher`), one file a teacher, by name in `TEACHERS`.

A teacher, a network or a plain sum, finds images alike, or captions alike, without the other side.
"""

from typing import Any

from manifests.registry import Registry

TEACHERS: Registry[Any] = Registry("teacher", "extract.teachers")
