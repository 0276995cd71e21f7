"""Points of a study that DVC's queue has made: `selfalign collect`.

Each is an experiment (`dvc exp run --queue -S ...`) with its own parameters and figures; DVC lists them.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.study import point, write_points
from eval.study_settings import StudySettings, label
from manifests.errors import InputError
from pipeline import places
from train.settings import RunSettings


def run(*, settings: StudySettings, base: RunSettings, out: Path) -> int:
    """Write the experiments of a study to `out` as `eval.study` writes points, and give how many they are.

    An experiment belongs to the study if its run differs from `base` in the study's key alone; of several with one
    value the latest counts. Raises InputError where there is none.
    """
    found: dict[str, dict[str, Any]] = {}
    for params, metrics, concepts in _experiments(settings.run):
        try:
            values = RunSettings.model_validate(params["runs"][settings.run]).model_dump()
        except (KeyError, ValueError):
            continue  # of a time when the run wasn't there, or had other parameters
        value = _take(values, settings.key)
        expected = base.model_dump()
        _take(expected, settings.key)
        if values == expected:
            found.setdefault(label(value), point(value, metrics, None, concepts))
    if not found:
        raise InputError(
            f"no experiment has figures of run {settings.run} that differs in {settings.key} alone",
            where="dvc exp show",
            fix=f"dvc exp run --queue -S 'runs.{settings.run}.{settings.key}=...' evaluate@{settings.run}, "
            "then dvc queue start",
        )
    write_points(out, sorted(found.values(), key=lambda row: _order(row["value"])))
    return len(found)


def _experiments(run: str) -> Iterator[tuple[Mapping, Mapping, Mapping]]:
    """Parameters, figures and concepts of HEAD's experiments that evaluated `run`, the latest first."""
    done = subprocess.run(["dvc", "exp", "show", "--json"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise InputError(
            " ".join(done.stderr.split())[-300:], where="dvc exp show", fix="run from the project's folder, in git"
        )
    for commit in json.loads(done.stdout):
        for experiment in commit["experiments"] or []:
            if (experiment["executor"] or {}).get("state", "success") != "success":
                continue  # what is queued, running or failed has the figures of the commit that it started from
            for state in experiment["revs"]:
                params = (((state["data"] or {}).get("params") or {}).get("params.yaml") or {}).get("data")
                metrics = _committed(state["rev"], places.metrics(run))
                if params and metrics:
                    yield params, metrics, _committed(state["rev"], places.correspondence(run)).get("concepts", {})


def _committed(revision: str, path: Path) -> dict:
    """A JSON file of an experiment's commit; DVC's own list of figures leaves intervals out. Empty where it isn't."""
    done = subprocess.run(
        ["git", "show", f"{revision}:{path.as_posix()}"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _take(values: dict, key: str) -> Any:
    """Remove the value at a dotted key and give it."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.get(section) or {}
    return values.pop(last, None)


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
