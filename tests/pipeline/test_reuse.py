"""`dvc repro` after each change of a data set of 40 pictures: how many went through the network, by its last line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.extract.region_files import scene_files
from tests.pipeline.project import Project, copy_checkout, shrink_demo

COUNT = 40
# Python imports this when it starts: each batch that goes through the demo's detector is noted in a file.
COUNTING = """
import importlib.util, os, sys

class Counting:
    def find_spec(self, name, path=None, target=None):
        if name != "demo.detector.demo":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            plain = module.DemoDetector.candidates

            def candidates(detector, pictures, given=None):
                with open(os.environ["COUNTED"], "a") as file:
                    print(len(pictures), file=file)
                return plain(detector, pictures, given)

            module.DemoDetector.candidates = candidates

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Counting())
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose only data set is 40 pictures of its own."""
    project = Project(tmp_path_factory.mktemp("forty"))
    copy_checkout(project)
    pictures = project.root / "pictures"
    pictures.mkdir()
    for name, data in scene_files(COUNT + 1).items():
        (pictures / name).write_bytes(data)
    params = shrink_demo(project.params)
    own = params["datasets"].pop("demo") | {
        "source": {"format": "folder", "images": "pictures", "captions": "captions.jsonl", "watch": "captions.jsonl"},
        "tokens": {"language": "blank_en", "min_count": 1},
    }
    own["regions"]["images_per_shard"] = 8
    params["datasets"]["own"] = own
    params |= {"teachers": {}, "studies": {}, "ensembles": {}, "optional": {}, "packs": {"own": {}}}
    run = params["runs"].pop("vsrn") | {"dataset": "own", "epochs": 1}
    aligned = {"losses": run["losses"] | {"lca": {"num_concepts": 4}}}
    params["runs"] = {"own": run, "aligned": run | aligned}
    project.write_params(params)
    count_pictures(project)
    write_captions(project, range(COUNT))
    return project


def count_pictures(project: Project) -> None:
    (project.root / "sitecustomize.py").write_text(COUNTING)
    project.environment["COUNTED"] = str(project.root / "counted.txt")


def write_captions(project: Project, numbers: range | list[int], moved: int = 0, **changes: str) -> None:
    """A row a picture; `changes` replace captions by the picture's number, and pictures are `moved` among splits."""
    splits = ("train",) * 8 + ("val", "test")
    rows = [
        {
            "image": f"{n:03d}.png",
            "captions": [changes.get(f"_{n}", f"a ring beside number {n}")],
            "split": splits[(n + moved) % 10],
        }
        for n in numbers
    ]
    (project.root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def computed(project: Project, dataset: str = "own") -> int:
    """Pictures that went through the network in ``dvc repro regions@own``, counted on the detector itself; where the
    stage ran, its last line says the same."""
    counted = project.root / "counted.txt"
    counted.unlink(missing_ok=True)
    text = project.repro(f"regions@{dataset}").text
    found = re.findall(rf"regions {dataset}: (\d+) pictures, (\d+) computed, (\d+) reused", text)
    passed = sum(map(int, counted.read_text().split())) if counted.exists() else 0
    assert [int(line[1]) for line in found] == [passed] * len(found) and (found or not passed)
    return passed


def edit(project: Project, name: str, change: Callable[[str], str]) -> None:
    path = project.root / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def set_regions(project: Project, **values: object) -> None:
    params = project.params
    params["datasets"]["own"]["regions"] |= values
    project.write_params(params)


def comment_in(project: Project, *folders: str) -> None:
    for folder in folders:
        for path in (project.root / folder).rglob("*.py"):
            path.write_text(f"{path.read_text(encoding='utf-8')}\n# A comment.\n", encoding="utf-8")


def test_what_each_change_costs(forty: Project) -> None:
    assert computed(forty) == COUNT
    first = forty.digests("data/own/regions")
    write_captions(forty, range(COUNT), _7="another caption")
    assert computed(forty) == 0
    write_captions(forty, range(COUNT + 1))
    assert computed(forty) == 1
    write_captions(forty, range(COUNT))
    assert computed(forty) == 0
    write_captions(forty, list(range(COUNT))[::-1])
    assert computed(forty) == 0
    write_captions(forty, range(COUNT), moved=3)
    assert computed(forty) == 0 and forty.digests("data/own/regions") != first
    write_captions(forty, range(COUNT))
    assert computed(forty) == 0
    assert forty.digests("data/own/regions") == first
    detector = forty.params["datasets"]["own"]["regions"]["detector"]
    shutil.copy(forty.root / detector["weights"], forty.root / "elsewhere.safetensors")
    set_regions(forty, detector=detector | {"weights": "elsewhere.safetensors"})
    assert computed(forty) == 0
    set_regions(forty, detector=detector, unreadable="skip")
    assert computed(forty) == 0
    set_regions(forty, unreadable="stop", images_per_shard=7)
    assert computed(forty) == 0
    set_regions(forty, images_per_shard=8)
    assert computed(forty) == 0
    assert forty.digests("data/own/regions") == first
    params = forty.params
    params["datasets"]["other"] = params["datasets"]["own"]
    forty.write_params(params)
    assert computed(forty, "other") == 0
    del params["datasets"]["other"]
    forty.write_params(params)

    comment_in(forty, "extract", "manifests")
    assert computed(forty) == 0 and forty.digests("data/own/regions") == first
    edit(forty, "extract/vision/rcnn/network.py", lambda text: text + "\nANOTHER = 1\n")
    assert computed(forty) == 0
    edit(forty, "demo/detector/demo.py", lambda text: text + "\nUNUSED = 1\n")
    assert computed(forty) == 8 and forty.digests("data/own/regions") == first
    edit(forty, "demo/detector/demo.py", lambda text: text.replace("/ 255\n", "/ 254\n"))
    assert computed(forty) == COUNT and forty.digests("data/own/regions") != first
    edit(forty, "demo/detector/demo.py", lambda text: text.replace("/ 254\n", "/ 255\n"))
    assert computed(forty) == 0 and forty.digests("data/own/regions") == first


def test_a_forced_repro_after_a_commit_changes_no_hash_and_comments_train_nothing(forty: Project) -> None:
    forty.repro("evaluate@own", "evaluate@aligned", "pack@own")
    lock = (forty.root / "dvc.lock").read_bytes()
    author = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    forty.command("git", *author, "commit", "-q", "--allow-empty", "-m", "Nothing")
    forty.repro("-f", "-s", "--no-run-cache", "regions@own", "tokens@own", "pack@own")
    assert (forty.root / "dvc.lock").read_bytes() == lock
    before = forty.digests("runs/own/model")
    comment_in(forty, "train")
    assert trained(forty) == set() and forty.digests("runs/own/model") == before
    edit(forty, "train/bases/camera.py", lambda text: text + "\nANOTHER = 1\n")
    assert trained(forty) == set()
    edit(forty, "train/losses/lca.py", lambda text: text + "\nANOTHER = 1\n")
    assert trained(forty) == {"aligned"}
    edit(forty, "train/ranking.py", lambda text: text + "\nANOTHER = 1\n")
    assert trained(forty) == {"own", "aligned"}


def trained(project: Project) -> set[str]:
    """The runs that `dvc repro` asks for and that no earlier training gives."""
    text = project.repro("train@own", "train@aligned").text
    reused = re.findall(r"run (\w+): trained before with this data, settings and code, and reused", text)
    assert set(reused) <= {"own", "aligned"}
    return set(re.findall(r"Running stage 'train@(\w+)'", text)) - set(reused)


def test_a_fresh_clone_with_the_same_cache_computes_nothing(forty: Project, tmp_path: Path) -> None:
    clone = Project(tmp_path / "clone")
    clone.root.mkdir()
    copy_checkout(clone)
    clone.environment["SELFALIGN_CACHE"] = forty.environment["SELFALIGN_CACHE"]
    shutil.copytree(forty.root / "pictures", clone.root / "pictures")
    count_pictures(clone)
    clone.write_params(forty.params)
    write_captions(clone, range(COUNT))
    assert computed(clone) == 0
