"""A detector, a reader, a format, a teacher, a base, a loss and a metric of another package, run by their names."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from extract.stores.regions import RegionStore
from extract.stores.teachers import TeacherStore
from manifests.tables import Manifest
from tests.pipeline.project import CHECKOUT

PARTS = ("corners", "lines", "flat", "colours", "mean", "spread", "middle")
# In one process, since importing PyTorch costs more than all commands.
RUN = """
import sys
from pipeline.cli import main
for command in sys.argv[1:]:
    main.main(command.split(), standalone_mode=False)
"""
COMMANDS = (
    *("manifest theirs", "regions theirs", "tokens theirs", "teachers theirs", "train run", "evaluate run", "report"),
    *("export flat data/theirs flat", "manifest again", "regions again"),
)


def params(folder: Path) -> dict[str, Any]:
    """The committed `params.yaml` with one data set and one run, of which every part is the other package's."""
    found = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    source = {"captions": "captions.txt", "watch": "captions.txt"}
    stores = {"tokens": {"language": "blank_en", "min_count": 1}}
    regions = {"detector": {"name": "corners", "side": 16}, "images_per_shard": 4}
    imported = {"format": "flat", "images": "flat", "captions": "flat/captions.json", "watch": "flat"}
    run = {
        **{"dataset": "theirs", "labels": "teachers", "epochs": 1, "batch_size": 8, "base": {"name": "mean", "dim": 8}},
        **{"text": {"reads": "tokens", "word_dim": 8}, "losses": {"triplet": {}, "csa": {}, "spread": {"weight": 2.0}}},
    }
    return found | {
        "datasets": {
            "theirs": stores | {"source": source | {"format": "lines", "images": "images"}, "regions": regions},
            "again": stores | {"source": imported, "regions": {}},
        },
        **{"text_features": {}, "packs": {}},
        "teachers": {"theirs": {"images": {"name": "colours"}, "captions": {"name": "lsa", "dim": 4}}},
        **{"optional": {}, "runs": {"run": run}, "ensembles": {}, "studies": {}},
        "evaluate": {"split": "test", "metrics": {"middle": {"order": 1}, "rouge_l": None}},
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which all commands have run, and the environment that has the other package."""
    folder = tmp_path_factory.mktemp("made")
    info = folder / "installed" / "plugin-1.2.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.2\n")
    info.joinpath("top_level.txt").write_text("plugin\n")
    parts = "".join(f"{name} = plugin.{name}\n" for name in PARTS)
    info.joinpath("entry_points.txt").write_text(f"[selfalign.parts]\n{parts}")
    (folder / "images").mkdir()
    lines, colours = [], {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
    for number in range(24):
        name, colour = list(colours.items())[number % 3]
        pixels = np.random.default_rng(number).normal(colour, 20, (20, 30, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        split = "test" if number > 20 else "val" if number > 17 else "train"
        lines.append(f"{split}: {number}.png: A {name} picture {number}. | It is {name}.\n")
    (folder / "captions.txt").write_text("".join(lines))
    (folder / "params.yaml").write_text(yaml.safe_dump(params(folder)))
    paths = (CHECKOUT, CHECKOUT / "tests" / "parts", folder / "installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SELFALIGN")}
    environment |= {"PYTHONPATH": ":".join(map(str, paths)), "SELFALIGN_CACHE": str(folder / "cache")}
    done = run(folder, environment, *COMMANDS)
    assert not done.returncode, done.stderr
    return folder, environment


def run(folder: Path, environment: dict[str, str], *commands: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *commands]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_its_reader_and_detector_make_stores(made: tuple[Path, dict[str, str]]) -> None:
    data = made[0] / "data" / "theirs"
    rows = Manifest.open(data / "manifest").captioned
    assert [len(rows), rows[3].captions] == [24, ("A red picture 3.", "It is red.")]
    store = RegionStore(data / "regions")
    found = store.regions(store.row(rows[4].id))
    assert len(store) == 24 and found.features.shape == (4, 6)
    assert found.boxes[3].tolist() == [15, 10, 30, 20] and found.features[:, :3].mean(0).argmax() == 1
    assert store.recipe["detector"] == {
        **{"name": "corners", "side": 16},
        "part": {"version": 3, "package": "plugin 1.2"},
    }


def test_its_format_takes_regions_there_and_back(made: tuple[Path, dict[str, str]]) -> None:
    stores = [RegionStore(made[0] / "data" / name / "regions") for name in ("theirs", "again")]
    assert len(list((made[0] / "flat").glob("*.flat.npy"))) == len(stores[1]) == 24
    for id in stores[0].ids:
        first, second = (store.regions(store.row(id)) for store in stores)
        np.testing.assert_array_equal(first.features, second.features)
        np.testing.assert_array_equal(first.boxes, second.boxes)
    assert stores[1].recipe["imported"]["part"] == {"package": "plugin 1.2"}


def test_its_teacher_gives_vectors(made: tuple[Path, dict[str, str]]) -> None:
    store = TeacherStore(made[0] / "data" / "theirs" / "teachers")
    assert store.dims == {"images": 3, "captions": 4}
    assert store.embeddings("images", range(6)).argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert store.recipe["images"] == {"name": "colours", "part": {"package": "plugin 1.2"}}
    assert "| teacher | `colours` | `lsa` |" in (store.folder / "README.md").read_text()


def test_its_base_and_loss_train_and_its_metric_is_reported(made: tuple[Path, dict[str, str]]) -> None:
    run = made[0] / "runs" / "run"
    head, first = (line.split(",") for line in (run / "epochs.csv").read_text().splitlines())
    assert float(first[head.index("spread")]) > 0
    figures = json.loads((run / "evaluation" / "figures.json").read_text())
    assert figures["rsum"] > 0 and "ndcg" not in figures and "unimodal" in figures
    figures_of_middle = figures["others"]["middle"]
    assert figures_of_middle["captions"] == 6 and figures_of_middle["mean_distance"] > 0
    pages = "".join(page.read_text(encoding="utf-8") for page in (made[0] / "report").glob("*.html"))
    assert "middle: mean distance" in pages and f"<td>{figures_of_middle['mean_distance']:.4g}</td>" in pages
    assert "A curve needs two epochs" in pages and "losses.spread.weight" in pages  # it was trained for one


def test_names_and_keys_of_its_parts_are_checked(made: tuple[Path, dict[str, str]]) -> None:
    folder, environment = made
    wrong = params(folder)
    wrong["runs"]["run"]["losses"]["spred"] = {}
    wrong["datasets"]["theirs"]["regions"]["detector"]["sied"] = 3
    wrong["teachers"]["theirs"]["images"]["name"] = "colour"
    wrong["evaluate"]["metrics"]["middle"] = {"ordre": 1}
    (folder / "wrong").mkdir()
    (folder / "wrong" / "params.yaml").write_text(yaml.safe_dump(wrong))
    output = run(folder / "wrong", environment, "train run").stderr
    for part in (
        "runs.run.losses: no loss 'spred' (did you mean 'spread'?)",
        "regions.detector.sied: unknown key (did you mean 'side'?)",
        "teachers.theirs.images: no teacher 'colour' (did you mean 'colours'?)",
        "evaluate.metrics.middle.ordre: unknown key (did you mean 'order'?)",
    ):
        assert part in output, output
