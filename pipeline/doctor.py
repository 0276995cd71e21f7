"""What `selfalign doctor` shows: settings, versions, and what is missing, each with what to do about it."""

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from manifests.errors import InputError
from pipeline import missing
from pipeline.machine import PREFIX, Machine
from pipeline.params import read_params

_OPTIONAL = ("detectron2", "timm", "faiss-cpu", "eccv-caption", "dask-jobqueue")
_LEAST = 10**9  # free bytes below which hardly a store can be made


@dataclass
class Examination:
    """Lines to print, and everything that is wrong."""

    lines: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def add(self, label: str, state: str, problems: Iterable[InputError] = ()) -> None:
        """Add a line on one thing: its `state`, or the number of its problems, which follow a line each."""
        problems = list(dict.fromkeys(str(problem) for problem in problems))
        self.lines.append(f"  {label:24} {_count(len(problems)) if problems else state}")
        self.lines += [f"    {problem}" for problem in problems]
        self.wrong.update(problems)

    def text(self) -> str:
        """The whole answer; its last line says whether all is well."""
        return "\n".join([*self.lines, "", _count(len(self.wrong)) if self.wrong else "ready"])


def examine(machine: Machine) -> Examination:
    """Look at everything."""
    found = Examination()
    found.lines.append("Machine settings (environment variables; they change the speed, not what is computed)")
    for name, setting in Machine.model_fields.items():
        variable = PREFIX + name.upper()
        origin = "set" if variable in os.environ else "default"
        found.lines.append(f"  {variable:24} {getattr(machine, name)!s:12} {origin:8} {setting.description}")
    found.lines += ["", "This machine"]
    _machine(found, machine)
    found.lines += ["", f"Packages (Python {platform.python_version()})"]
    _packages(found)
    found.lines += ["", "Data sets and runs (params.yaml)"]
    _params(found)
    return found


def _machine(found: Examination, machine: Machine) -> None:
    try:
        found.add("torch device", machine.torch_device())
    except InputError as error:
        found.add("torch device", "", [error])
    for label, path in (("staging folder", machine.staging), ("project's folder", Path("."))):
        folder = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        free, problems = shutil.disk_usage(folder).free, []
        if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            fix = (
                f"set {PREFIX}STAGING to a folder of yours" if path == machine.staging else "work in a folder of yours"
            )
            problems.append(InputError("nothing can be written there", where=f"{label} {path}", fix=fix))
        if free < _LEAST:
            message = f"{free / 1e6:.0f} MB are free"
            problems.append(InputError(message, where=f"{label} {path}", fix="make room on that disk"))
        found.add(label, f"{free / 1e9:.0f} GB free", problems)
    if machine.cluster.startswith("slurm") and find_spec("dask_jobqueue") is None:
        where, fix = f"{PREFIX}CLUSTER={machine.cluster}", 'run `pip install "dask-jobqueue>=0.9"`'
        found.add("cluster", "", [InputError("dask-jobqueue isn't installed", where=where, fix=fix)])


def _packages(found: Examination) -> None:
    """All that this project requires, and some of what it may use. No optional package is wrong unless it is needed."""
    again = "run `make environment`"
    try:
        required = [Requirement(text) for text in requires("selfalign") or []]
    except PackageNotFoundError:
        required = [Requirement("selfalign")]
    for package in required:
        if package.marker is None or package.marker.evaluate({"extra": ""}):
            installed = _version(package.name)
            if installed is None:
                found.add(package.name, "", [InputError("not installed", where=f"package {package.name}", fix=again)])
            elif not package.specifier.contains(installed, prereleases=True):
                message = f"version {installed}, where {package.specifier} is needed"
                found.add(package.name, "", [InputError(message, where=f"package {package.name}", fix=again)])
            else:
                found.add(package.name, installed)
    for name in _OPTIONAL:
        found.add(name, _version(name) or "not installed (optional)")
    if shutil.which("git") is None:
        found.add("git", "", [InputError("no such program", where="PATH: git", fix="install git")])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _params(found: Examination) -> None:
    try:
        params = read_params()
    except InputError as error:
        found.add("params.yaml", "", [error])
        return
    for name in params.datasets:
        yet = missing.made_by_stages(params, name)
        state = f"not there yet: {', '.join(map(str, yet))} (`dvc repro` makes it)" if yet else "ready"
        found.add(name, state + _pictures(missing.absent_pictures(params, name)), missing.of_dataset(params, name))
    for name in params.shared:
        state = "ready" + _pictures(missing.absent_pictures(params, name))
        found.add(name, state, missing.of_shared(params, name))
    for name, run in params.runs.items():
        found.add(f"run {name}", "ready", missing.of_run(run, name))
    found.add("evaluation", "ready", missing.of_evaluation(params))


def _pictures(absent: Path | None) -> str:
    return f"; no pictures in {absent}: the report shows none" if absent else ""


def _count(number: int) -> str:
    return "1 thing is missing" if number == 1 else f"{number} things are missing"
