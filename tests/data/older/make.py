"""Make `project.tar.xz`: what the stages of an earlier commit wrote for ten pictures (README.md).

python -m tests.data.older.make [COMMIT]
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from PIL import Image, ImageDraw

from tests.archives import extract_all

COMMIT = "238b111"
HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]
KEPT = ("params.yaml", "dvc.lock", "pictures", "captions.jsonl", "data/own")
STAGES = ("regions@own", "tokens@own", "teachers@own", "pack@own")


def main(commit: str) -> None:
    with TemporaryDirectory() as name:
        project = Path(name)
        archive = subprocess.run(["git", "archive", commit], cwd=CHECKOUT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            extract_all(files, project)
        (project / "dvc.lock").unlink()
        draw(project)
        write_params(project)
        environment = os.environ | {"PYTHONPATH": name, "SELFALIGN_THREADS": "1", "SELFALIGN_BATCH": "4"}
        for command in (("git", "init", "-q"), ("dvc", "repro", *STAGES)):
            subprocess.run(command, cwd=project, env=environment, check=True)
        with tarfile.open(HERE / "project.tar.xz", "w:xz") as tar:
            for kept in KEPT:
                tar.add(project / kept, kept, filter=plain)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member without whose it is and when it was written; none of hidden files."""
    if Path(member.name).name.startswith("."):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def draw(project: Path) -> None:
    """Ten pictures of 32 x 24 with a rectangle in each, out of the order of their splits, with two captions each."""
    (project / "pictures").mkdir()
    rows = []
    for number in range(10):
        rng = np.random.default_rng(number)
        picture = Image.new("RGB", (32, 24), tuple(rng.integers(0, 80, 3).tolist()))
        x, y = rng.integers(2, 14, 2).tolist()
        ImageDraw.Draw(picture).rectangle((x, y // 2, x + 12, y // 2 + 9), tuple(rng.integers(120, 256, 3).tolist()))
        picture.save(project / "pictures" / f"{number:02d}.png")
        split = ("train", "train", "test", "train", "val")[number % 5]
        captions = [f"a box at {x}", f"the box of picture {number}"]
        rows.append({"image": f"{number:02d}.png", "split": split, "captions": captions})
    (project / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_params(project: Path) -> None:
    """Two regions a picture, four pictures a shard, so that shards of all splits are cut anew."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    own = params["datasets"].pop("demo")
    own["source"] = {"format": "folder", "images": "pictures", "captions": "captions.jsonl"}
    own["regions"]["images_per_shard"] = own["pack"]["images_per_shard"] = 4
    own["regions"]["selection"] |= {"min_boxes": 2, "max_boxes": 2}
    own["tokens"] = {"language": "blank_en", "min_count": 1}
    params["datasets"]["own"] = own
    teachers = params["teachers"]["demo"]
    teachers["captions"]["dim"] = 4
    run = params["runs"]["vsrn-selfalign"] | {"dataset": "own", "epochs": 1, "batch_size": 4}
    run["base"] |= {"dim": 8, "graph_layers": 1}
    run["text"]["word_dim"] = 4
    run["selfalign"]["concept"]["num_concepts"] = run["selfalign"]["bag"]["num_concepts"] = 4
    run["selfalign"]["context"]["num_negatives"] = 4
    params |= {"teachers": {"own": teachers}, "runs": {"small": run}, "scenes": params["scenes"] | {"train": 1}}
    params["scenes"] |= {"val": 1, "test": 1, "size": 64}
    params |= {"optional": {}, "ensembles": {}, "studies": {}}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


if __name__ == "__main__":
    main(*(sys.argv[1:] or [COMMIT]))
