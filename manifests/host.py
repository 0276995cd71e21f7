"""The machine of a timing: the facts that stand beside it, and a text of them for readers."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from manifests.files import fingerprint


def host_facts() -> dict[str, Any]:
    """This machine's processor, cores and `host`, a hash of its name: files that are shared don't tell the name."""
    return {"host": fingerprint(platform.node())[:12], "processor": _processor(), "cores": os.cpu_count()}


def measured_where(facts: Mapping[str, Any] | None) -> str:
    """A place as a reader sees it: this machine, another one by its processor, or one that nobody noted."""
    if not facts:
        return "on another machine"
    if facts.get("host") == host_facts()["host"]:
        return "on this machine"
    cores = f", {facts['cores']} cores" if facts.get("cores") else ""
    return f"elsewhere: {facts.get('processor') or 'unknown processor'}{cores}"


def _processor() -> str:
    """The processor's name as the system gives it; where it gives none, the kind of machine."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
