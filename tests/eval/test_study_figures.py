"""Committed figures of studies: made with the settings that stand in `params.yaml` and the presets, and told as found.

python -m tests.eval.test_study_figures     # writes the tables of docs anew
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.recall import CUTOFFS
from eval.study.points import settings_sha256
from eval.study.settings import StudySettings, varied
from manifests.files import canonical_json
from pipeline.strict_yaml import load
from train.settings import RunSettings

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "studies"
DOCS = sorted((ROOT / "docs").glob("*.md"))
TABLE = re.compile(r"(<!-- study ([\w-]+) -->\n)(.*?)(<!-- /study -->)", re.S)


def params(path: Path) -> dict[str, Any]:
    return load(path.read_text(encoding="utf-8"))


def studies() -> dict[str, tuple[Path, StudySettings, RunSettings]]:
    """The studies with committed figures: their folder, settings, and the run that they vary."""
    own, found = params(ROOT / "params.yaml"), {}
    for path in sorted(FIGURES.glob("*/points.jsonl")) + sorted((ROOT / "studies").glob("*/points.jsonl")):
        name = path.parent.name
        sources = [own, *map(params, sorted((ROOT / "presets").glob("studies-*.yaml")))]
        said = next(source for source in sources if name in source["studies"])
        study = StudySettings.model_validate(said["studies"][name])
        run = (own["runs"] | said.get("runs", {}))[study.run]
        found[name] = path.parent, study, RunSettings.model_validate(run)
    return found


STUDIES = studies()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected(folder: Path, study: StudySettings, run: RunSettings) -> Iterator[tuple[str, int, Any, str]]:
    """Row, seed, option and the settings' sha256 of every point that the study has."""
    choices = {row["row"]: json.loads(row["chosen"]) for row in rows(folder) if row["chosen"]}
    for name, row in study.table.items():
        options = [(option, study.choosing_seeds) for option in row.options] if row.choose else []
        for option, seeds in [*options, (None, study.seeds)]:
            changes = study.changes_of(name, choices, option)
            for seed in seeds:
                yield name, seed, option, settings_sha256(varied(run, changes, seed))


@pytest.mark.parametrize("name", STUDIES)
def test_figures_are_of_the_settings_that_are_committed(name: str) -> None:
    folder, study, run = STUDIES[name]
    lines = [json.loads(line) for line in (folder / "points.jsonl").read_text(encoding="utf-8").splitlines()]
    made = [[line[key] for key in ("row", "seed", "chooses", "settings")] for line in lines]
    assert sorted(map(canonical_json, made)) == sorted(map(canonical_json, expected(folder, study, run)))


CAPTIONS = re.compile(r"(<!-- captions -->\n)(.*?)(<!-- /captions -->)", re.S)


def captions() -> str:
    """The recalls by kind of caption as docs have them, and what each row gains over its control."""
    figures = json.loads((FIGURES.parent / "captions.json").read_text(encoding="utf-8"))
    columns = [f"{kind}, r{cutoff}" for kind in sorted(figures["captions"]) for cutoff in CUTOFFS]
    heads = ["", *(key.replace(", r", ": R@") for key in columns)]
    lines = [heads, ["---"] * len(heads)]
    for name, row in figures["rows"].items():
        lines.append([name, *("{:.1f} ± {:.1f}".format(*row["recalls"][key]) for key in columns)])
        if row["gains"]:
            lines.append(["gain", *("{:+.1f} ± {:.1f}".format(*row["gains"][key]) for key in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_recalls_by_kind_of_caption_are_of_the_settings_that_are_committed() -> None:
    figures = json.loads((FIGURES.parent / "captions.json").read_text(encoding="utf-8"))
    folder, study, run = STUDIES[figures["study"]]
    for name, row in figures["rows"].items():
        made = {settings for of, _, option, settings in expected(folder, study, run) if of == name and option is None}
        assert set(row["settings"]) == made
    assert [found[1] for page in DOCS for found in CAPTIONS.findall(page.read_text(encoding="utf-8"))] == [captions()]


def cell(row: Mapping[str, str], key: str, sign: str = "") -> str:
    if not row[key]:
        return ""
    digits = 3 if key == "fitting" else 1
    deviation = f" ± {float(row[f'{key}_sd']):.{digits}f}" if row.get(f"{key}_sd") else ""
    return f"{round(float(row[key]), digits) + 0.0:{sign}.{digits}f}{deviation}"  # no "-0.0"


def markdown(folder: Path) -> str:
    """The table as docs have it."""
    found = rows(folder)
    columns = {"val_rsum": "val", "rsum": "test", "gain": "gain"}
    columns |= {
        key: head
        for key, head in (("teacher_rsum", "teacher"), ("reranked_rsum", "re-ranked"), ("fitting", "words fit"))
        if any(row[key] for row in found)
    }
    heads = ["", *columns.values(), "over", "chosen"]
    lines = [heads, ["---"] * len(heads)]
    for row in found:
        chosen = json.loads(row["chosen"]) if row["chosen"] else {}
        choices = ", ".join(f"{key.removeprefix('losses.')} {value}" for key, value in chosen.items())
        figures = (cell(row, key, "+" if key == "gain" else "") for key in columns)
        lines.append([row["row"], *figures, row["against"], choices])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_tables_of_docs_are_those_that_were_found(page: Path) -> None:
    for _, name, table, _ in TABLE.findall(page.read_text(encoding="utf-8")):
        assert table == markdown(STUDIES[name][0])


if __name__ == "__main__":
    for page in DOCS:
        text = page.read_text(encoding="utf-8")
        text = TABLE.sub(lambda m: m[1] + markdown(STUDIES[m[2]][0]) + m[4], text)
        page.write_text(CAPTIONS.sub(lambda m: m[1] + captions() + m[3], text), encoding="utf-8")
