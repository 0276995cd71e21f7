"""The life of a shared set, by the very commands of docs/sharing.md, on servers that run for the length of a test.

Project A makes features and pushes them. Clones pull them from a folder, over SSH, S3 and HTTP. Project B imports them
at a revision and trains. A third project takes one shard, a fourth streams. Two clones share one cache.
"""

import grp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import pytest
import yaml

from manifests.tables import Manifest
from tests.extract.test_intact import flip
from tests.pipeline import servers
from tests.pipeline.project import CHECKOUT, Project, Result, copy_checkout, shrink_demo
from tests.pipeline.recipes import blocks, placed, recipe

STORES = ("manifest", "regions", "tokens")


@dataclass
class World:
    """A machine with a home, a place for git repositories, and what stands for the made-up places of the page."""

    root: Path
    places: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("srv", "git", "home", "work"):
            (self.root / name).mkdir()
        self.repository = self.root / "git" / "features"
        self.places |= {
            "https://github.com/lab/features": str(self.repository),
            "/srv/selfalign": str(self.root / "srv"),
            "researchers": grp.getgrgid(os.getgid()).gr_name,
        }

    def project(self, name: str) -> Project:
        """A project in the folder `name`, which need not be there yet."""
        project = Project(self.root / "work" / name)
        project.environment |= {
            **{"HOME": str(self.root / "home"), "no_proxy": "127.0.0.1", "LC_ALL": "C.UTF-8"},
            **{"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"},
        }
        return project

    def run(self, project: Project, text: str, ends_with: int = 0) -> Result:
        """Run a block of the page in a project's folder."""
        return project.command("bash", "-euo", "pipefail", "-c", placed(text, self.places), ends_with=ends_with)

    def clone(self, name: str) -> Project:
        """A clone that has no data yet, made by the page's first two commands of "Pull"."""
        folder = self.project(name)
        folder.root.mkdir()
        lines = recipe("Pull").splitlines()
        assert lines[1] == "cd features"
        self.run(folder, lines[0])
        return self.project(f"{name}/features")

    def pull(self, clone: Project) -> Result:
        """The rest of the commands of "Pull"."""
        return self.run(clone, "\n".join(recipe("Pull").splitlines()[2:]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    (world.root / "home" / ".gitconfig").write_text("[user]\nname = Test\nemail = test@localhost\n[gc]\nauto = 0\n")
    return world


def small_project(world: World, name: str) -> Project:
    """This checkout with 40 scenes, in 5 shards of regions and, as the page has it, two packed shards to train on."""
    project = world.project(name)
    project.root.mkdir()
    copy_checkout(project)
    params = shrink_demo(project.params) | {"ensembles": {}, "studies": {}}
    del params["runs"]["vsrn-selfalign"]
    params["scenes"] |= {"train": 24, "val": 8, "test": 8}
    params["datasets"]["demo"]["regions"]["images_per_shard"] = 8
    params["packs"]["demo"]["images_per_shard"] = 12
    project.write_params(params)
    return project


@pytest.fixture(scope="module")
def features(world: World) -> Project:
    """Project A: 40 scenes, features made and pushed to a folder, committed, tagged and pushed."""
    a = small_project(world, "a")
    a.command("git", "init", "-q", "--bare", str(world.repository))
    a.command("git", "remote", "add", "origin", str(world.repository))
    world.run(a, recipe("A folder"))
    world.run(a, recipe("Push"))
    return a


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[None]:
    """nginx as the page sets it up."""
    folder = world.root / "nginx"
    folder.mkdir()
    with servers.nginx(
        folder, lambda listen: placed(recipe("HTTP", "nginx"), world.places | {"listen 80": listen})
    ) as address:
        world.places["http://features.lab.example"] = address
        yield


@pytest.fixture
def ssh(world: World, tmp_path: Path) -> Iterator[None]:
    with servers.sshd(tmp_path, world.root / "home", "gpu.lab.example"):
        yield
    shutil.rmtree(world.root / "home" / ".ssh")


@pytest.fixture
def s3(world: World) -> Iterator[None]:
    pytest.importorskip("dvc_s3", reason="dvc-s3 isn't installed (the extra `s3` has it)")
    with servers.s3("lab-features") as address:
        world.places["http://s3.lab.example"] = address
        yield


def moved(world: World, features: Project, kind: str, block: str) -> Project:
    """A clone, without data, of the project on a branch that has another remote, filled and pushed by the page."""
    features.command("git", "checkout", "-q", "-B", kind, "v1.0")
    try:
        world.run(features, block)
        world.run(features, recipe("Push", number=1))
    finally:
        (features.root / ".dvc" / "config.local").unlink(missing_ok=True)
        features.command("git", "checkout", "-q", "-")
    clone = world.clone(kind)
    clone.command("git", "checkout", "-q", kind)
    return clone


def test_every_block_of_the_page_is_run_by_a_test() -> None:
    code = "".join(path.read_text("utf-8") for path in (CHECKOUT / "tests").rglob("test_*.py"))
    run = {
        (heading, language or "sh", int(number or 0))
        for heading, language, number in re.findall(
            r'recipe\(\s*"(.+?)"(?:,\s*"(\w+)")?(?:,\s*number=(\d+))?\s*\)', code
        )
    }
    assert sorted(block.name for block in blocks()) == sorted(run)


def test_the_readmes_commands_are_the_pages() -> None:
    """What README.md says of sharing runs as well: its lines are lines of the page."""
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    (section,) = re.findall(r"^## Sharing features\n(.*?)^## ", readme, re.M | re.S)
    commands = "".join(re.findall(r"```sh\n(.*?)```", section, re.S))
    lines = [line.split(" #")[0].strip() for line in commands.splitlines()]
    page = {line.strip() for block in blocks() for line in block.text.splitlines()}
    assert len(lines) >= 6 and [line for line in lines if line not in page] == []


@pytest.mark.parametrize("kind", ["ssh", "s3", "http"])
def test_a_clean_clone_pulls_what_was_pushed(
    world: World, features: Project, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "ssh":
        pytest.importorskip("dvc_ssh", reason="dvc-ssh isn't installed (the extra `ssh` has it)")
        request.getfixturevalue("ssh")
        shutil.rmtree(world.root / "srv" / "dvc")
        clone = moved(world, features, kind, recipe("SSH"))
    elif kind == "s3":
        request.getfixturevalue("s3")
        clone = moved(world, features, kind, recipe("S3"))
    else:
        request.getfixturevalue("web")
        clone = moved(world, features, kind, recipe("HTTP"))
    stores = [f"data/demo/{name}" for name in STORES]
    assert not any((clone.root / store).exists() for store in stores)
    assert "sound: data/demo/regions/train (24 images" in world.pull(clone).text
    assert clone.digests(*stores) == features.digests(*stores)
    if kind == "http":
        requests = (world.root / "nginx" / "requests").read_text()
        assert requests.count("GET /dvc/files/md5/") >= len(clone.digests(*stores))


@pytest.fixture(scope="module")
def importing(world: World, features: Project) -> Project:
    """Project B: other settings, no features of its own, A's imported and trained on."""
    b = small_project(world, "b")
    params = b.params
    added = yaml.safe_load(recipe("Import into another project", "yaml"))
    params |= {name: added[name] for name in ("shared", "ensembles", "studies")}
    params["runs"]["vsrn"] |= added["runs"]["vsrn"]
    b.write_params(params)
    assert "sound: data/lab-demo/regions/train (24 images" in world.run(b, recipe("Import into another project")).text
    trained = world.run(b, recipe("Import into another project", number=1))
    assert trained.stages == ["train@vsrn"]
    return b


def test_another_project_imports_at_a_revision_and_trains(world: World, features: Project, importing: Project) -> None:
    for name in STORES:
        written = yaml.safe_load((importing.root / f"data/lab-demo/{name}.dvc").read_text())
        (source,) = written["deps"]
        assert source["repo"]["rev"] == "v1.0" and source["repo"]["url"] == str(world.repository)
        ours, theirs = importing.digests(f"data/lab-demo/{name}"), features.digests(f"data/demo/{name}")
        assert list(ours.values()) == list(theirs.values())
    record = json.loads((importing.root / "runs/vsrn/model/run.json").read_text())
    stores = {"regions": "regions/train", "tokens": "tokens"}
    recipes = {
        name: json.loads((features.root / f"data/demo/{at}/recipe.json").read_text()) for name, at in stores.items()
    }
    assert all(record["recipe"][name] == recipe["recipe"] for name, recipe in recipes.items())
    tracked = importing.command("git", "ls-files", "data").text.split()
    assert tracked == [f"data/lab-demo/{name}.dvc" for name in sorted(STORES)]
    assert importing.command("git", "status", "--short").text == ""


def test_a_flipped_byte_is_named(importing: Project) -> None:
    shard = importing.root / "data/lab-demo/regions/train/000002.h5"
    damaged = shard.read_bytes()
    shard.unlink()  # it is a link to DVC's cache, where it can't be written to
    shard.write_bytes(damaged)
    flip(shard, 0.6)
    said = importing.command("selfalign", "verify", "data/lab-demo/regions", ends_with=1).text
    assert "000002.h5: sha256 is " in said
    refused = importing.command("selfalign", "train", "vsrn", ends_with=1).text
    assert "data/lab-demo/regions/train/000002.h5: the file has changed" in refused
    importing.command(*re.search(r"`(dvc checkout [^`]+)`", refused)[1].split())
    assert (
        "sound: data/lab-demo/regions/train" in importing.command("selfalign", "verify", "data/lab-demo/regions").text
    )


def test_one_shard_is_taken_alone(world: World, features: Project) -> None:
    someone = world.project("someone")
    someone.root.mkdir()
    someone.environment.pop("PYTHONPATH")
    world.run(someone, recipe("One shard alone"))
    assert [path.name for path in someone.root.iterdir() if path.name != ".dvc"] == ["000000.h5"]
    shard = features.root / "data/demo/regions/train/000000.h5"
    assert (someone.root / "000000.h5").read_bytes() == shard.read_bytes()
    said = someone.command("python", "-c", placed(recipe("One shard alone", "python"), world.places)).text
    with h5py.File(shard) as file:
        assert said.split()[0] == file["image_id"][0].decode()
    assert "(12, 256) (12, 4)" in said


@pytest.mark.usefixtures("web")
def test_shards_are_streamed_over_http_with_webdataset_alone(world: World, features: Project) -> None:
    servers.need(shutil.which("curl") is not None, "curl")
    world.run(features, recipe("Stream over HTTP"))
    said = subprocess.run(
        [sys.executable, "-P", "-c", placed(recipe("Stream over HTTP", "python"), world.places)],
        cwd=world.root,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "http_proxy")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    train = [row.id for row in Manifest.open(features.root / "data/demo/manifest").images if row.split == "train"]
    assert [line.split()[0] for line in said] == train and len(train) == 24
    assert all(line.endswith(" (12, 256) (12, 4)") for line in said)


def test_versions_are_registered_and_taken(world: World, features: Project) -> None:
    world.run(features, recipe("Versions of features and models"))
    someone = world.project("versions")
    someone.root.mkdir()
    world.run(someone, recipe("Versions of features and models", number=1))
    theirs = features.digests("data/demo/regions")
    assert list(someone.digests("regions").values()) == list(theirs.values())
    assert "demo-regions@v1.0.0" in features.command("git", "tag").text.split()


def test_two_clones_pull_from_a_folder_and_share_one_cache_without_copies(world: World, features: Project) -> None:
    clones = [world.clone(name) for name in ("first", "second")]
    for clone in clones:  # one user's home for both
        clone.environment["DVC_GLOBAL_CONFIG_DIR"] = str(world.root / "home" / "dvc")
    world.run(clones[0], recipe("One cache for a machine"))
    world.run(clones[0], recipe("One cache for a machine", number=1))
    for clone in clones:
        assert "sound: data/demo/regions/train (24 images" in world.pull(clone).text
        stores = [f"data/demo/{name}" for name in STORES]
        assert clone.digests(*stores) == features.digests(*stores)
        assert not (clone.root / ".dvc/cache/files").exists()
    assert clones[0].repro("regions@demo", "tokens@demo", "--dry", "--single-item").stages == []
    shards = [sorted((clone.root / "data/demo/regions").glob("*/*.h5")) for clone in clones]
    assert len(shards[0]) == 5
    cache = world.root / "srv" / "cache"
    kept = {path.stat().st_ino: path for path in cache.rglob("*") if path.is_file()}
    for ours, theirs in zip(*shards, strict=True):
        assert os.path.samefile(ours, theirs) and ours.stat().st_ino in kept
        assert not ours.stat().st_mode & 0o222
    folders = {path for path in cache.rglob("*") if path.is_dir()}
    assert all(path.stat().st_mode & 0o070 == 0o070 for path in folders)
    assert {path.stat().st_gid for path in (*folders, *kept.values())} == {cache.stat().st_gid}
    assert world.run(clones[0], recipe("Pull", number=1)).stages == ["train@vsrn"]
    assert not (clones[0].root / "data/scenes").exists()


@pytest.mark.slow
def test_one_split_without_pictures_is_evaluated_searched_and_reported(world: World, features: Project) -> None:
    features.repro("train@vsrn")
    features.command("dvc", "push")
    features.command("git", "add", "--all")
    features.command("git", "commit", "-q", "-m", "A run")
    features.command("git", "push", "-q", "origin", "HEAD")
    clone = world.clone("evaluating")
    lock = yaml.safe_load((clone.root / "dvc.lock").read_text())["stages"]
    assert world.run(clone, recipe("Pull", number=2)).stages == ["evaluate@vsrn"]
    assert [path.name for path in (clone.root / "data/demo/regions").iterdir() if path.is_dir()] == ["test"]
    assert not (clone.root / "data/scenes").exists()

    features.repro("evaluate@vsrn")
    after = yaml.safe_load((clone.root / "dvc.lock").read_text())["stages"]
    assert after == lock | {"evaluate@vsrn": after["evaluate@vsrn"]}
    theirs = yaml.safe_load((features.root / "dvc.lock").read_text())["stages"]["evaluate@vsrn"]
    for what in ("cmd", "deps", "params"):
        assert after["evaluate@vsrn"][what] == theirs[what]
    assert clone.metrics("vsrn") == features.metrics("vsrn") and clone.metrics("vsrn")["images"] == 8
    assert clone.repro("--allow-missing", "evaluate@vsrn").stages == []
    assert yaml.safe_load((clone.root / "dvc.lock").read_text())["stages"] == after

    index = ("selfalign", "index", "vsrn", "demo")
    assert "8 images and 40 captions of demo" in clone.command(*index, "--split", "test").text
    assert "page: " in clone.command("selfalign", "search", "a ring left of a star").text
    clone.command("selfalign", "report")
    assert "vsrn" in (clone.root / "report/index.html").read_text(encoding="utf-8")
    verified = clone.command("selfalign", "verify", "data/demo/regions").text
    assert verified.count("sound: ") == 1 and "\nsound: data/demo/regions/test (8 images" in verified
    refused = clone.command(*index, ends_with=1).text
    assert "data/demo/regions/train: there is no such store" in refused
    assert "`dvc pull data/demo/regions/train`" in refused


def test_a_licence_is_written_and_nothing_is_made_again(world: World, features: Project) -> None:
    """The last test of project A, which keeps its licence."""
    before = features.digests("data/demo/regions")
    said = world.run(features, recipe("Licence and citation"))
    assert said.text.count("| licence of the pictures | CC BY 4.0 (") == 4
    after = features.digests("data/demo/regions")
    changed = {Path(path).name for path in before if before[path] != after[path]}
    assert changed == {"index.json", "README.md", "croissant.json"} and before.keys() == after.keys()
    assert features.repro("--dry", "pack@demo").stages == []


def test_recipes_are_read_as_they_stand(tmp_path: Path) -> None:
    page = "# A\n```sh\none\n```\ntext\n```sh\n# two\n```\n## B\n```python\nprint(1)\n```\n"
    assert [(block.name, block.text) for block in blocks(page)] == [
        (("A", "sh", 0), "one\n"),
        (("A", "sh", 1), "# two\n"),
        (("B", "python", 0), "print(1)\n"),
    ]
    with pytest.raises(KeyError):
        placed("dvc push # http://s3.lab.example", {})


def test_a_server_that_is_missing_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    check: Callable[[], None] = lambda: servers.need(False, "nginx")  # noqa: E731
    monkeypatch.delenv("REQUIRE_SERVERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="nginx isn't installed"):
        check()
    monkeypatch.setenv("REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="nginx isn't installed"):
        check()
