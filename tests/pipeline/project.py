"""A small copy of this project in which tests run DVC: 80 scenes, and 11 pictures added by way of params.yaml alone."""

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from demo.scenes.describing import describe
from demo.scenes.drawing import draw_scene

CHECKOUT = Path(__file__).parents[2]
ARTIFACTS = (
    "data",
    "runs",
    "ensembles",
    "studies",
    "report",
    "dvc.lock",
    ".staging",
    "cache",
)  # of a checkout in use, and not its code
# (width, height), split and number of captions of each picture
PICTURES = (
    ((200, 120), "train", 5),
    ((97, 140), "train", 2),
    ((300, 300), "restval", 3),
    ((64, 64), "train", 5),
    ((640, 200), "restval", 4),
    ((160, 160), "train", 5),
    ((120, 200), "val", 3),
    ((333, 222), "val", 2),
    ((90, 90), "test", 5),
    ((480, 360), "test", 2),
    ((210, 350), "test", 3),
)


@dataclass(frozen=True)
class Result:
    """What a command printed (both streams), and the stages that DVC ran, or would run, in that order."""

    text: str

    @property
    def stages(self) -> list[str]:
        return re.findall(r"^Running stage '(.+?)':", self.text, re.MULTILINE)


class Project:
    """A copy of the working tree below `root`, with its own git and DVC."""

    def __init__(self, root: Path):
        self.root = root
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        nowhere = "http://127.0.0.1:9"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SELFALIGN_", "GIT_"))},
            **{"PATH": path, "PYTHONPATH": str(root), "SELFALIGN_THREADS": "1", "SELFALIGN_BATCH": "4"},
            "SELFALIGN_CACHE": str(root / "cache"),
            **{"CI": "1", "DVC_NO_ANALYTICS": "1"},  # DVC asks nobody for news, and starts no process to do so
            **{"HF_HUB_OFFLINE": "1", "http_proxy": nowhere, "https_proxy": nowhere},
            **{"DVC_GLOBAL_CONFIG_DIR": str(root / ".dvc/tmp"), "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site")},
        }
        # Without compiled modules every stage would spend its time on importing torch.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def command(self, *arguments: str, ends_with: int = 0) -> Result:
        """Run a command in the project to its end, whose exit status is checked."""
        done = subprocess.run(
            arguments,
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == ends_with, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        return Result(done.stdout)

    def repro(self, *arguments: str) -> Result:
        return self.command("dvc", "repro", *arguments)

    def kill_when(self, made: str, *arguments: str, count: int = 1) -> None:
        """Run `dvc repro`, and SIGKILL it with all that it started as soon as there are `count` files of the pattern
        `made`."""
        with TemporaryFile("w+") as output:
            process = subprocess.Popen(
                ["dvc", "repro", *arguments],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            while len(list(self.root.glob(made))) < count:
                if process.poll() is not None:
                    output.seek(0)
                    pytest.fail(f"dvc repro ended before there was {made}:\n{output.read()}")
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @property
    def params(self) -> dict[str, Any]:
        """A copy of what params.yaml holds."""
        return yaml.safe_load((self.root / "params.yaml").read_text(encoding="utf-8"))

    def write_params(self, params: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    @contextmanager
    def restored(self) -> Iterator[dict[str, Any]]:
        """Give the parameters to change and write; afterwards params.yaml and dvc.lock are as they were before."""
        before = {name: (self.root / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
        try:
            yield self.params
        finally:
            for name, content in before.items():
                (self.root / name).write_bytes(content)

    def digests(self, *folders: str) -> dict[str, str]:
        """SHA-256 of every file below some folders that isn't hidden, by its path in the project."""
        below = [file for folder in folders for file in sorted((self.root / folder).rglob("*"))]
        files = [file for file in below if file.is_file() and not file.name.startswith(".")]
        return {str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def metrics(self, run: str) -> dict[str, Any]:
        return json.loads((self.root / "runs" / run / "evaluation" / "figures.json").read_text(encoding="utf-8"))


def copy_checkout(project: Project) -> None:
    """Copy the working tree, files that aren't committed included, and commit it in a new repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = CHECKOUT / name, project.root / name
        if source.is_file() and (source.name == "README.md" or Path(name).parts[0] not in ARTIFACTS):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    author = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "A copy")):
        project.command("git", *author, *command)


def shrink_demo(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the committed demo, made small."""
    small = copy.deepcopy(params)
    small["runs"] = {name: small["runs"][name] for name in ("vsrn", "vsrn-selfalign")}
    small["scenes"] |= {"train": 48, "val": 12, "test": 20}
    demo = small["datasets"]["demo"]
    demo["regions"]["images_per_shard"] = small["packs"]["demo"]["images_per_shard"] = 16
    for run in small["runs"].values():
        run |= {"epochs": 2, "batch_size": 32}
        run["base"]["dim"], run["text"]["word_dim"] = 32, 16
    small["runs"]["vsrn-selfalign"]["losses"]["lca"]["num_concepts"] = 32
    small["studies"]["codebook-size"]["vary"] = {"losses.lca.num_concepts": [4, 8]}
    small["studies"]["part-of-speech"]["vary"] = {"losses.lca.parts_of_speech": [["NOUN"], None]}
    return small


def shrink(params: dict[str, Any], pictures: Path, encoder: Path) -> dict[str, Any]:
    """The committed demo made small, with the data set `pictures`, a folder, and a run on what encoders made of it."""
    small = shrink_demo(params)
    demo, aligned = small["datasets"]["demo"], small["runs"]["vsrn-selfalign"]
    small["datasets"]["pictures"] = copy.deepcopy(demo) | {
        "source": {
            "format": "karpathy",
            "images": str(pictures),
            "captions": str(pictures / "captions.json"),
            "watch": str(pictures / "captions.json"),
        },
        "tokens": {"language": "blank_en", "min_count": 1},
    }
    small["datasets"]["pictures"]["regions"]["images_per_shard"] = 4
    small["datasets"]["pictures"]["tokens"]["tokenizer"] = str(encoder)
    small["packs"]["pictures"] = small["packs"]["demo"]
    small["text_features"] = {"pictures": {"model": str(encoder)}}
    small["teachers"] = {"pictures": {"images": {"name": "regions-mean"}, "captions": {"name": "lsa"}}}
    changed = {"dataset": "pictures", "labels": "teachers", "text": {"reads": "text_features"}}
    small["runs"]["on-pictures"] = copy.deepcopy(aligned) | changed
    small["runs"]["on-pictures"]["losses"] |= {"csa": {}, "cusa_contrast": {}, "usa": {}}
    return small


def take_pictures(folder: Path) -> None:
    """Fill `folder` with JPEGs of many sizes and a Karpathy JSON, as somebody's own data set has them."""
    images = []
    for number, (size, split, captions) in enumerate(PICTURES):
        rng = np.random.default_rng([99, number])
        pixels, scene = draw_scene(rng)
        name = f"photo {number}.jpg"
        Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(folder / name, quality=90)
        sentences = [{"raw": caption.text} for caption in describe(rng, scene)[:captions]]
        images.append({"filename": name, "imgid": number, "split": split, "sentences": sentences})
    (folder / "captions.json").write_text(json.dumps({"dataset": "pictures", "images": images}), encoding="utf-8")
