"""Points of a study that DVC's queue has made: `selfalign collect`.

Each is an experiment (`dvc exp run --queue -S ...`) with its own parameters and figures; DVC lists them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.study import QUEUED_COLUMNS, point, write_points
from eval.study_settings import StudySettings, label, varied
from manifests.errors import InputError
from pipeline import places
from train.settings import RunSettings


def run(*, settings: StudySettings, base: RunSettings, out: Path) -> int:
    """Write the experiments of a study to `out` as `eval.study` writes points, and give how many they are.

    An experiment belongs to the study if its run is `base` with one value of the study's key, as it is or with the
    study's changes; the column `of` says which. Of several with one value the latest counts. Raises InputError where
    there is none.
    """
    plain = settings.model_copy(update={"changes": {}})
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for params, metrics, concepts in _experiments(settings.run):
        try:
            tried = RunSettings.model_validate(params["runs"][settings.run]).model_dump()
        except (KeyError, ValueError):
            continue  # of a time when the run wasn't there, or had other parameters
        value = _value(tried, settings.key)
        for of, wanted in (("run", plain), ("study", settings)):
            if tried == varied(base, wanted, value).model_dump():
                found.setdefault((of, label(value)), point(value, metrics, None, concepts) | {"of": of})
                break
    if not found:
        raise InputError(
            f"no experiment has figures of run {settings.run} that differs in {settings.key} alone, with or without "
            "the study's changes",
            where="dvc exp show",
            fix=f"dvc exp run --queue -S 'runs.{settings.run}.{settings.key}=...' evaluate@{settings.run}, "
            "then dvc queue start",
        )
    points = sorted(found.values(), key=lambda row: (row["of"], _order(row["value"])))
    write_points(out, points, QUEUED_COLUMNS)
    return len(points)


def _experiments(run: str) -> Iterator[tuple[Mapping, Mapping, Mapping]]:
    """Parameters, figures and concepts of HEAD's experiments that evaluated `run`, the latest first."""
    done = _ask([sys.executable, "-m", "dvc", "exp", "show", "--json"])
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
    done = _ask(["git", "show", f"{revision}:{path.as_posix()}"])
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What a command says; InputError where there is no such program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise InputError(f"there is no program {command[0]}", where="PATH", fix=f"install {command[0]}") from None


def _value(values: Any, key: str) -> Any:
    """The value at a dotted key; None where it isn't."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, before words."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
