"""Studies on real stores: what is trained, chosen and shared out, and what the table says."""

import csv
import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eval.study.points import settings_sha256
from eval.study.settings import RowSettings, StudySettings, varied
from eval.study.stage import run
from eval.study.table import COLUMNS, table
from manifests.errors import InputError
from tests.eval.data_files import draw_data_set
from train.settings import RunSettings

BASE = {
    "dataset": "demo",
    "epochs": 1,
    "batch_size": 8,
    "base": {"name": "vse_infinity", "dim": 8},
    "text": {"reads": "tokens", "word_dim": 8},
    "losses": {"triplet": {}},
}
CONTRAST = {"weight": 10.0, "temperature": 0.1}


def study(**keys: Any) -> StudySettings:
    return StudySettings(**{"title": "Test", "run": "base", "dataset": "demo", **keys})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data_set(tmp_path_factory.mktemp("study"))


def make(data: Path, root: Path, settings: StudySettings, **base: Any) -> str:
    return run(
        name="test",
        settings=settings,
        base=RunSettings(**{**BASE, **base}),
        manifest=data / "manifest",
        regions=data / "regions",
        tokens=data / "tokens",
        text_features=None,
        teachers=None,
        split="test",
        rerank=4,
        device="cpu",
        batch_size=16,
        staging=root / "staging",
        cache=root / "cache",
        out=root / "study",
    )


def points(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "study" / "points.jsonl").read_text("utf-8").splitlines()]


def rows(root: Path) -> list[dict[str, str]]:
    with open(root / "study" / "table.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def trained(root: Path) -> set[str]:
    """The runs of the cache, each of which was trained once."""
    return {path.name for path in (root / "cache" / "runs").iterdir() if path.is_dir()}


def test_rows_seeds_choice_and_gain(data: Path, tmp_path: Path):
    settings = study(
        seeds=(1, 2),
        choosing_seeds=(100, 101),
        rows={
            "base": {},
            "+ InfoNCE": {
                "extends": "base",
                "changes": {"losses.contrast": CONTRAST},
                "choose": {"losses.contrast.weight": [1.0, 50.0]},
            },
            "+ CRA": {"extends": "+ InfoNCE", "changes": {"losses.cra": {"num_negatives": 8}}, "against": "base"},
        },
    )
    text = make(data, tmp_path, settings)
    found = points(tmp_path)
    chooses = [point for point in found if point["chooses"] is not None]
    assert [(p["row"], p["seed"]) for p in found if p["chooses"] is None] == [
        (name, seed) for name in settings.rows for seed in (1, 2)
    ]
    assert len(trained(tmp_path)) == len(found) == 6 + 4 and all("rsum" not in p["figures"] for p in chooses)

    # The better mean on the validation split is chosen, and the row that extends has it too.
    means = {}
    for weight in (1.0, 50.0):
        own = [p["figures"]["val_rsum"] for p in chooses if p["chooses"] == {"losses.contrast.weight": weight}]
        means[weight] = sum(own) / len(own)
    weight = max(means, key=lambda weight: means[weight])
    base = RunSettings(**BASE)
    expected = {"losses.contrast": CONTRAST, "losses.cra": {"num_negatives": 8}, "losses.contrast.weight": weight}
    assert found[-1]["settings"] == settings_sha256(varied(base, expected, 2))

    table = rows(tmp_path)
    assert [row["row"] for row in table] == list(settings.rows) and list(table[0]) == list(COLUMNS)
    assert json.loads(table[1]["chosen"]) == {"losses.contrast.weight": weight} and table[0]["chosen"] == ""
    reached = {(p["row"], p["seed"]): p["figures"]["rsum"] for p in found if p["chooses"] is None}
    for row in table:
        own = [reached[row["row"], seed] for seed in (1, 2)]
        assert float(row["rsum"]) == pytest.approx(sum(own) / 2, abs=1e-3)
        assert float(row["rsum_sd"]) == pytest.approx(abs(own[0] - own[1]) / 2**0.5, abs=1e-3)
    gains = [reached["+ CRA", seed] - reached["base", seed] for seed in (1, 2)]
    assert table[2]["against"] == "base" and float(table[2]["gain"]) == pytest.approx(sum(gains) / 2, abs=1e-3)
    assert table[1]["against"] == "base" and table[0]["gain"] == ""
    assert re.split(r"  +", text.splitlines()[0]) == [
        *("row", "seeds", "val R@sum", "R@sum", "gain", "over", "words fit", "chosen")
    ]
    assert not (tmp_path / "staging" / "study-test").exists()


def test_one_more_seed_or_row_trains_no_other(data: Path, tmp_path: Path):
    make(data, tmp_path, study(vary={"base.dim": [8, 4]}))
    before, first = trained(tmp_path), points(tmp_path)
    make(data, tmp_path, study(vary={"base.dim": [8, 4]}))
    assert trained(tmp_path) == before and points(tmp_path) == first
    make(data, tmp_path, study(vary={"base.dim": [8, 4]}, seeds=(0, 1)))
    assert len(trained(tmp_path) - before) == 2
    assert [(p["row"], p["seed"]) for p in points(tmp_path)] == [("8", 0), ("8", 1), ("4", 0), ("4", 1)]
    make(data, tmp_path, study(vary={"base.dim": [8, 4, 2]}))
    assert len(trained(tmp_path) - before) == 3
    assert {line["key"]: line["figures"] for line in first}.items() <= {
        line["key"]: line["figures"] for line in points(tmp_path)
    }.items()


def test_processes_share_a_study_out(data: Path, tmp_path: Path):
    settings = study(vary={"base.dim": [8, 6, 4, 2]})
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        texts = pool.starmap(make, [(data, tmp_path, settings)] * 2)
    assert texts[0] == texts[1] and [row["row"] for row in rows(tmp_path)] == ["8", "6", "4", "2"]
    assert len(trained(tmp_path)) == 4


def test_a_killed_study_keeps_what_is_done(data: Path, tmp_path: Path):
    make(data, tmp_path, study(vary={"base.dim": [8]}))
    done = points(tmp_path)[0]
    (tmp_path / "study" / "points.jsonl").unlink()
    (tmp_path / "staging" / "study-test").mkdir(parents=True)
    kept = tmp_path / "staging" / "study-test" / f"{done['key']}.json"
    kept.write_text(json.dumps(done["figures"] | {"rsum": 599.0}))
    make(data, tmp_path, study(vary={"base.dim": [8, 4]}))
    assert [point["figures"]["rsum"] for point in points(tmp_path)][0] == 599.0


def test_a_study_that_ends_leaves_what_another_process_made_for_more_seeds(data: Path, tmp_path: Path):
    make(data, tmp_path, study(vary={"base.dim": [8]}, seeds=(0, 1)))
    other = next(point for point in points(tmp_path) if point["seed"] == 1)
    (tmp_path / "study" / "points.jsonl").unlink()
    staging = tmp_path / "staging" / "study-test"
    staging.mkdir(parents=True)
    (staging / f"{other['key']}.json").write_text(json.dumps(other["figures"]))
    make(data, tmp_path, study(vary={"base.dim": [8]}))
    assert [path.stem for path in staging.glob("*.json")] == [other["key"]]


def test_modes_and_words_are_in_the_table():
    figures = {"val_rsum": 1.0, "rsum": 2.0, "i2t_r1": 0.0, "t2i_r1": 0.0, "interval": [1.5, 2.5]}
    modes = {"student": {"rsum": 2.0}, "teacher": {"rsum": 3.0}, "reranked": {"rsum": 4.0}}
    whole = figures | {"modes": modes, "correspondence": {"fitting": 0.5, "fitting_chance": 0.2, "accuracy": 0.4}}
    found = table(study(rows={"a": {}, "b": {"against": "a"}}), {"a": [figures], "b": [whole]}, {})
    assert found[0]["teacher_rsum"] is None and found[0]["fitting"] is None
    assert (found[1]["teacher_rsum"], found[1]["reranked_rsum"], found[1]["fitting"]) == (3.0, 4.0, 0.5)
    assert (found[1]["low"], found[1]["high"], found[1]["gain"], found[1]["gain_sd"]) == (1.5, 2.5, 0.0, None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either vary or rows"),
        ({"vary": {"epochs": [1]}, "rows": {"a": {}}}, "give either vary or rows"),
        ({"vary": {"epochs": []}}, "epochs has no values"),
        ({"rows": {"a": {"choose": {"epochs": []}}}}, "epochs has no values"),
        ({"rows": {"a": {"extends": "b"}, "b": {}}}, "rows.a.extends is 'b', which is no earlier row"),
        ({"rows": {"a": {"against": "a"}}}, "rows.a.against is 'a', which is no earlier row"),
        ({"rows": {"a": {"choose": {"epochs": []}}, "b": {"choose": {"epochs": [1]}}}}, "epochs has no values"),
        ({"vary": {"base.dim": [8, 8]}}, "two of the varied values have one name"),
        ({"vary": {"losses.lca.parts_of_speech": ["all", None]}}, "two of the varied values have one name"),
        ({"vary": {"seed": [1, 2]}}, "a row can't change seed"),
        ({"rows": {"a": {"changes": {"seed": 5}}}}, "a row can't change seed"),
        ({"vary": {"epochs": [1]}, "seeds": (1, 1)}, "seed 1 stands twice"),
        ({"rows": {"a": {"choose": {"epochs": [1, 2]}}}, "seeds": (100,)}, "seed 100 stands twice"),
        ({"vary": {"epochs": [1]}, "seeds": ()}, "at least 1 item"),
    ],
)
def test_a_study_that_says_too_much_or_too_little(keys: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        study(**keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs.more": 1}, "epochs.more: epochs is 1, which has no keys"),
        ({"losses.contrasts": {}}, "losses"),
        ({"bse": 1}, "unknown key"),
        ({"base.dim": 0}, "dim: Input should be greater than"),
    ],
)
def test_a_row_that_is_no_run_is_named(changes: dict, message: str):
    with pytest.raises(InputError, match=f"row 'a': .*{message}"):
        list(study(rows={"a": {"changes": changes}}).possible(RunSettings(**BASE)))


def test_rows_of_varied_keys_are_named_by_their_values():
    assert list(study(vary={"losses.lca.parts_of_speech": [["NOUN", "ADJ"], None]}).table) == ["NOUN+ADJ", "all"]
    both = study(vary={"base.dim": [8, 4], "epochs": [1]}).table
    assert both == {f"dim {dim}, epochs 1": RowSettings(changes={"base.dim": dim, "epochs": 1}) for dim in (8, 4)}
