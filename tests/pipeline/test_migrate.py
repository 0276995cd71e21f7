"""`selfalign migrate`: what the stages of an earlier commit wrote (tests/data/older) goes on here, uncomputed."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from extract.stores.regions import RegionStore
from extract.stores.teachers import TeacherStore
from manifests.errors import InputError
from manifests.tables import Manifest
from pipeline import migrating
from pipeline.machine import Machine
from pipeline.old_params import rewritten
from pipeline.params import parse_params
from tests.archives import extract_all
from tests.pipeline.project import CHECKOUT, Project, copy_checkout

ARCHIVE = CHECKOUT / "tests" / "data" / "older" / "project.tar.xz"
DATA = {f"{stage}@own" for stage in ("manifest", "regions", "tokens", "teachers", "pack")}
RUNS = {"train@small", "evaluate@small", "report"}


def unpack(root: Path) -> Path:
    with tarfile.open(ARCHIVE) as tar:
        extract_all(tar, root)
    return root


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The older project in the current folder; DVC is only asked, and `commands` says for what."""
    unpack(tmp_path)
    (tmp_path / "demo").symlink_to(CHECKOUT / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(migrating, "_dvc", lambda *arguments: asked.append(arguments))
    return asked


def state(root: Path) -> dict[str, bytes]:
    names = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    kept = [path.relative_to(root) for path in names if path.relative_to(root).parts[0] not in ("demo", "cache")]
    return {str(name): (root / name).read_bytes() for name in kept if not name.name.endswith(".intact.json")}


@pytest.mark.slow
def test_an_older_project_goes_on_without_extracting(tmp_path: Path) -> None:
    project, old = Project(tmp_path / "project"), unpack(tmp_path / "old")
    project.root.mkdir()
    copy_checkout(project)
    unpack(project.root)
    params = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(f"# of mine\n{params}# the end\n")
    output = project.command("selfalign", "migrate").text
    assert "regions own: 10 pictures, 0 computed, 10 reused" in output
    assert "teachers own: 30 images and captions, 0 computed, 30 reused" in output

    written = (project.root / "params.yaml").read_text()
    assert written.startswith("# of mine\n") and written.count("\n# the end\n") == 1
    now, before = yaml.safe_load(written), yaml.safe_load(params)
    assert now["datasets"]["own"]["source"].pop("watch") == "captions.jsonl"
    assert now["datasets"]["own"]["regions"]["detector"].pop("weights") == "demo/weights/demo.safetensors"
    before["datasets"]["own"]["regions"]["detector"].pop("weights")
    assert now.pop("packs") == {"own": before["datasets"]["own"].pop("pack")}
    assert now.pop("teachers") == {"own": {"images": {"name": "regions-mean"}, "captions": {"name": "lsa", "dim": 4}}}
    assert before.pop("teachers")["own"]["captions"] == {"model": "lsa", "dim": 4}
    assert {key: now[key] for key in now if key != "runs"} == {key: before[key] for key in before if key != "runs"}

    ours, theirs = RegionStore(project.root / "data/own/regions"), RegionStore(old / "data/own/regions")
    assert sorted(ours.ids) == sorted(theirs.ids) and ours.recipe == theirs.recipe
    for id in theirs.ids:
        a, b = ours.regions(ours.row(id)), theirs.regions(theirs.row(id))
        assert (a.features == b.features).all() and (a.boxes == b.boxes).all() and a.image_size == b.image_size
    stores = [RegionStore(ours.folder, split) for split in ("train", "val", "test")]
    assert [len(store) for store in stores] == [6, 2, 2]
    manifests = [Manifest.open(root / "data/own/manifest") for root in (project.root, old)]
    assert list(manifests[0].captioned) == list(manifests[1].captioned)
    vectors = [TeacherStore(root / "data/own/teachers") for root in (project.root, old)]
    vectors[0].require_manifest(project.root / "data/own/manifest")
    for side, count in (("images", 10), ("captions", 20)):
        assert (vectors[0].embeddings(side, range(count)) == vectors[1].embeddings(side, range(count))).all()
    for name in ("tokens", "pack"):
        for path in (old / "data/own" / name).iterdir():
            assert (project.root / "data/own" / name / path.name).read_bytes() == path.read_bytes()

    assert set(status(project)) == {"scenes"} | RUNS
    stages = project.repro().stages
    assert not DATA.intersection(stages) and set(stages) == {"scenes"} | RUNS
    assert status(project) == {}
    assert "nothing to migrate" in project.command("selfalign", "migrate").text
    made = project.digests("data/own/manifest", "data/own/regions")
    again = project.repro("-f", "-s", "--no-run-cache", "manifest@own", "regions@own").text
    assert "regions own: 10 pictures, 0 computed, 10 reused" in again
    assert project.digests("data/own/manifest", "data/own/regions") == made


def status(project: Project) -> dict:
    output = project.command("dvc", "status", "--json").text
    return json.loads(output[output.index("{") :])


def test_a_migration_killed_before_dvc_commit_is_continued(
    older: Path, monkeypatch: pytest.MonkeyPatch, commands: list[tuple[str, ...]]
) -> None:
    def killed(*arguments: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(migrating, "_dvc", killed)
        migrating.run(Machine.from_environment())
    made = state(older)
    output = migrating.run(Machine.from_environment())
    assert commands == [("commit", "--force", "--quiet", "detector", *sorted(DATA, key=commands[0].index))]
    assert "own: its stores in today's form" in output and state(older) == made


def damaged(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: shutil.rmtree(root / "data"), "data/own/regions isn't here: fetch it with the code that made it"),
        (lambda root: shutil.rmtree(root / "data/own/regions"), "data/own/regions isn't here"),
        (lambda root: (root / "captions.jsonl").unlink(), "captions.jsonl isn't here"),
        (lambda root: (root / "captions.jsonl").write_text("{}"), "captions.jsonl isn't what manifest@own was made of"),
        (lambda root: respell(root, "shortest: 160", "shortest: 128"), "'detector.resize.shortest': 160 here, 128"),
        (lambda root: respell(root, "dim: 4\n", "dim: 3\n"), "data/own/teachers"),
        (lambda root: respell(root, "epochs: 1", "epoch: 1"), "epoch"),
        (lambda root: damaged(root / "data/own/regions/000001.h5"), "000001.h5"),
        (lambda root: (root / "data/own/regions/000002.h5").unlink(), "000002.h5"),
    ],
)
def test_what_cannot_be_taken_changes_nothing(
    older: Path, commands: list[tuple[str, ...]], harm: object, message: str
) -> None:
    harm(older)
    before = state(older)
    with pytest.raises(InputError) as caught:
        migrating.run(Machine.from_environment())
    assert message in str(caught.value)
    assert state(older) == before and commands == []


def respell(root: Path, old: str, new: str) -> None:
    path = root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


OLD_RUNS = """\
datasets:  # one
  own: {source: {format: folder, images: a, captions: b.csv}, pack: {images_per_shard: 4}}
optional:
  set: &set
    first: &first # a base run
      base: {name: vsrn, dim: 8, caption_decoder: {dim: 4}}
      triplet: &triplet
        margin: 0.2
      # of the losses
      aladin: &distilled
        alignment: {weight: 2.0, over_words: mean}
    second:
      <<: *first
      epochs: 3
    third:
      <<: *first
      triplet: *triplet
      cusa: {cross_modal: {weight: 5.0}}
      selfalign: {concept: {num_concepts: 4}, bag: {num_concepts: 4}}
runs:
  <<: *set
  now: {losses: {triplet: {}}}
studies:
  one:
    key: selfalign.concept.num_concepts
    values: [4, 8]
    changes: &small {selfalign.bag: null, aladin.alignment.weight: 1.0}
  two: {key: base.dim, values: [8, null], changes: *small}
# the end
"""


def test_losses_move_wherever_they_were_written() -> None:
    text, notes = rewritten(OLD_RUNS)
    source = {"format": "folder", "images": "a", "captions": "b.csv"}
    found = yaml.safe_load(text)
    first, second, third = (found["optional"]["set"][name] for name in ("first", "second", "third"))
    aligned = {"weight": 2.0, "aggregation": "MrAVGw", "all_negatives_epochs": 1, "locals": "projected"}
    losses = {"triplet": {"margin": 0.2}, "generation": {"dim": 4}, "alignment": aligned}
    assert first == {"base": {"name": "vsrn", "dim": 8}, "losses": losses}
    assert second == first | {"epochs": 3}
    soft = {"csa": {"weight": 5.0}, "usa": {}, "cusa_contrast": {"reads": "embedding", "divided": False}}
    assert third["losses"] == losses | {"lca": {"num_concepts": 4}} | soft and third["bag"] == {"num_concepts": 4}
    assert set(third) == {"base", "losses", "bag"} and set(found["runs"]) == {"first", "second", "third", "now"}
    changes = {"bag": None, "losses.alignment.weight": 1.0}
    assert found["studies"]["one"] == {"changes": changes, "vary": {"losses.lca.num_concepts": [4, 8]}}
    assert found["studies"]["two"] == {"changes": changes, "vary": {"base.dim": [8, None]}}
    assert found["packs"] == {"own": {"images_per_shard": 4}}
    assert found["datasets"] == {"own": {"source": {**source, "watch": "b.csv"}}}
    for line in ("datasets:  # one", "    first: &first # a base run", "      # of the losses", "# the end"):
        assert line in text.splitlines()
    assert rewritten(text) == (text, []) and notes


def test_todays_parameters_stay_as_they_are() -> None:
    text = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
    assert rewritten(text) == (text, [])
    for preset in (CHECKOUT / "presets").glob("*.yaml"):
        text = preset.read_text(encoding="utf-8") + "packs: {}\n"
        assert rewritten(text) == (text, [])
    with pytest.raises(InputError, match="selfalign migrate"):
        parse_params(OLD_RUNS)


@pytest.mark.parametrize(
    ("images", "now"),
    [
        (
            "\n      model: a/vit\n      reads: manifest # pictures\n      pooling: cls\n",
            {"model": "a/vit", "pooling": "cls"},
        ),
        (" {model: models/vit, reads: manifest}\n", {"model": "models/vit"}),
    ],
)
def test_teachers_get_names_and_spice_is_a_metric(images: str, now: dict[str, str]) -> None:
    teachers = f"teachers:\n  d:\n    images:{images}    captions: {{model: models/minilm, plain: true}}\n"
    written, changes = rewritten(f"packs: {{}}\n{teachers}evaluate: {{split: test, spice: a.jar}} # one\n")
    found = yaml.safe_load(written)
    assert found["teachers"]["d"] == {
        "images": {"name": "vision"} | now,
        "captions": {"name": "sentences", "model": "models/minilm", "plain": True},
    }
    assert found["evaluate"] == {"split": "test", "metrics": {"spice": {"jar": "a.jar"}}} and "# one" in written
    assert "teachers.d.images: name: vision" in changes


def test_a_study_of_dvcs_queue_and_an_empty_spice_go() -> None:
    queued = "  one: {title: One, run: a, dataset: d, key: base.dim, values: []} # queued"
    studies = f"studies:\n{queued}\n  two: {{key: k, values: [1]}}\n"
    written, changes = rewritten(f"packs: {{}}\nevaluate: {{split: test, spice: null}}\n{studies}")
    found = yaml.safe_load(written)
    assert found["evaluate"] == {"split": "test"} and found["studies"] == {"two": {"vary": {"k": [1]}}}
    assert any(line.startswith("studies.one: taken out") for line in changes)
