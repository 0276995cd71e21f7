"""`selfalign add`: what is there is understood, and the entries it writes are all that changes in params.yaml."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from manifests.locks import sole_writer
from pipeline.cli import main
from pipeline.params import Params, read_params
from tests.pipeline.project import CHECKOUT, Project, copy_checkout, take_pictures

TEXT = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
GERMAN = ("Ein Mann steht auf der Straße.", "Zwei Hunde spielen in dem Schnee.", "Die Frau ist mit dem Kind im Garten.")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed params.yaml, in which commands run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 11 pictures and Karpathy's JSON of them, `captions.json`."""
    folder = tmp_path_factory.mktemp("photographs")
    take_pictures(folder)
    return folder


def add(*options: object, name: str = "mine") -> str:
    done = CliRunner().invoke(main, ["add", name, *map(str, options)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*options: object, name: str = "mine") -> str:
    """The one line with which `selfalign add` ends; params.yaml is as it was."""
    before = Path("params.yaml").read_bytes()
    done = CliRunner().invoke(main, ["add", name, *map(str, options)], catch_exceptions=False)
    assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
    assert Path("params.yaml").read_bytes() == before
    return done.output


def added(output: str) -> Params:
    """The parameters, after a look at what has changed in their text: lines are added, and `{}` is filled."""
    now = Path("params.yaml").read_text(encoding="utf-8").splitlines()
    changes = SequenceMatcher(None, TEXT.splitlines(), now, autojunk=False).get_opcodes()
    gone = [line for kind, start, end, *_ in changes if kind != "insert" for line in TEXT.splitlines()[start:end]]
    kept = [line for kind, start, end, *_ in changes if kind == "equal" for line in TEXT.splitlines()[start:end]]
    assert [line for line in gone if line not in kept] in (
        [],
        ["text_features: {} # data set: {model: ...}; docs/text.md"],
    )
    assert "written to params.yaml: datasets.mine" in output
    return read_params()


def write_table(path: Path, captions: Sequence[str], pictures: Sequence[str]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "caption"))
        table.writerows((name, caption) for name in pictures for caption in captions)
    return path


def write_scan(folder: Path, boxes: np.ndarray | None, splits: Sequence[str] = ("train", "dev", "test")) -> Path:
    folder.mkdir()
    for split in splits:
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(len(split)).random((6, 2, 8), np.float32))
        (folder / f"{split}_caps.txt").write_text("a dog in the grass\nthe cat is on a chair\n" * 6, encoding="utf-8")
        if boxes is not None:
            np.save(folder / f"{split}_boxes.npy", np.tile(boxes.astype(np.float32), (6, 1, 1)))
            np.save(folder / f"{split}_img_sizes.npy", np.tile(np.array([100, 60]), (6, 1)))
    return folder


def test_karpathys_json_with_its_splits(project: Path, pictures: Path) -> None:
    output = add("--images", pictures, "--captions", pictures / "captions.json")
    params = added(output)
    source, run = params.dataset("mine").source, params.run("mine-vse-infinity")
    assert (source.format, source.images, source.watch) == ("karpathy", pictures, pictures / "captions.json")
    assert (
        params.dataset("mine").regions.detector.name == "grid" and params.dataset("mine").regions.unreadable == "skip"
    )
    assert params.dataset("mine").tokens.language == "blank_en" and run.dataset == "mine"
    for text in (
        "11 pictures",
        "39 captions, 2 to 5 an image",
        "6 train, 2 val, 3 test, as the file says",
        "36 boxes an image, 1,280 numbers each",
        "a run learns from train alone, a search looks in all",
        "blank_en has no parts of speech, so all words but stop words get a box",
        "dvc repro evaluate@mine-vse-infinity",
        "selfalign index mine-vse-infinity mine",
        "selfalign serve mine-vse-infinity-mine",
    ):
        assert text in output


def test_a_table_in_another_language_whose_splits_are_made(project: Path, pictures: Path) -> None:
    names = [path.name for path in sorted(pictures.glob("*.jpg"))]
    table = write_table(project / "captions.csv", GERMAN, names)
    output = add("--images", pictures, "--captions", "captions.csv")
    params = added(output)
    data, losses = params.dataset("mine"), params.run("mine-vse-infinity").losses
    assert (data.source.format, data.source.captions, data.tokens.language) == ("folder", Path(table.name), "blank:de")
    assert losses["word_region"].locals == "contextual"  # learned words are compared after the GRU
    assert losses["word_region"].weight == losses["contrast"].weight == 100  # of a small set's batches
    assert data.tokens.tokenizer is None and data.source.val_fraction == data.source.test_fraction > 0.1
    assert (
        "33 captions, 3 an image" in output
        and "read as CSV" in output
        and "by a hash of their ids" in output
        and "it learns the words itself" in output
    )


def test_a_language_that_is_given(project: Path, pictures: Path) -> None:
    output = add("--images", pictures, "--captions", pictures / "captions.json", "--language", "blank:fr")
    assert added(output).dataset("mine").tokens.language == "blank:fr"
    assert "no spaCy pipeline of this name" in refused("--images", pictures, "--language", "fr_no", name="other")


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("两个孩子在海边玩沙子。", "blank:zh"),
        ("海辺で二人の子供が遊んでいる。", "characters"),
        ("빨간 헬멧을 쓴 남자", "characters"),
    ],
)
def test_scripts_without_spaces_or_a_pipeline(project: Path, caption: str, language: str) -> None:
    folder = write_scan(project / "scan", None)
    for path in folder.glob("*_caps.txt"):
        path.write_text(f"{caption}\n" * 12, encoding="utf-8")
    assert added(add("--features", "scan", folder)).dataset("mine").tokens.language == language
    if "。" in caption:
        assert "written without spaces" in refused("--features", "scan", folder, "--language", "blank_en", name="b")


def test_a_root_one_level_off_is_found(project: Path, pictures: Path) -> None:
    (project / "photos").symlink_to(pictures)
    table = write_table(project / "captions.csv", ["a dog in the grass"], [f"photo {n}.jpg" for n in range(11)])
    output = add("--images", project, "--captions", table)
    assert added(output).dataset("mine").source.images == project / "photos"
    assert "that is the image root" in output


def test_unusable_rows_are_listed_and_left_out_on_request(project: Path, pictures: Path) -> None:
    table = write_table(project / "t.csv", ["a dog in the grass"], [f"photo {n}.jpg" for n in (*range(11), 97, 98)])
    table.write_text(table.read_text(encoding="utf-8") + "photo 0.jpg,...\n", encoding="utf-8")
    message = refused("--images", pictures, "--captions", table)
    assert "3 mistakes (1 caption without a word, 2 missing)" in message and "give --skip to leave them out" in message
    output = add("--images", pictures, "--captions", table, "--skip")
    source = added(output).dataset("mine").source
    assert (source.missing, source.unreadable) == ("skip", "skip")
    assert "11 pictures" in output and "3 left out (1 caption without a word, 2 missing)" in output


def test_more_mistakes_than_a_message_shows_are_listed_in_a_file_that_stays(project: Path, pictures: Path) -> None:
    names = ["photo 0.jpg", *(f"gone {number}.jpg" for number in range(12))]
    table = write_table(project / "t.csv", ["a dog in the grass"], names)
    told = refused("--images", pictures, "--captions", table)
    listing = Path(re.search(r"all of them are listed in (\S+)\.", told)[1])
    assert listing == Path(".staging/mine-refused.jsonl")
    listed = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    assert [(one["kind"], one["row"]) for one in listed] == [("missing", f"line {row}") for row in range(3, 15)]
    write_table(table, ["a dog in the grass"], [f"photo {number}.jpg" for number in range(11)])
    add("--images", pictures, "--captions", table)
    assert not listing.exists()


def test_a_captions_file_in_the_folder_is_taken(project: Path, pictures: Path) -> None:
    output = add("--images", pictures)
    assert added(output).dataset("mine").source.captions == pictures / "captions.json"
    assert "captions.json is in the folder" in output
    copy = Path(shutil.copytree(pictures, project / "two"))
    write_table(copy / "captions.csv", ["a dog"], ["photo 0.jpg"])
    assert "captions.csv, captions.json" in refused("--images", copy, name="other")


def test_nothing_but_pictures_is_searched_by_a_picture(project: Path) -> None:
    for name in ("a.png", "b/a.png", "b/c.JPG", ".hidden/d.png"):
        path = project / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 30, 30)).save(path, "PNG")
    (project / "pictures" / "notes.txt").write_text("no picture")
    output = add("--images", "pictures")
    params = added(output)
    source = params.dataset("mine").source
    assert (source.format, source.captions, source.watch) == ("pictures", Path("pictures"), Path("pictures"))
    assert source.val_fraction == source.test_fraction == 0
    assert not [run for run in params.runs.values() if run.dataset == "mine"]
    assert "3 pictures in pictures, no captions" in output and "nothing is trained: there are no captions" in output
    assert "selfalign search --dataset mine --image photo.jpg" in output


@pytest.mark.parametrize(
    ("boxes", "convention"),
    [
        (None, None),
        ([[0, 0, 100, 60], [50, 30, 100, 60]], "xyxy"),
        ([[0, 0, 100, 60], [50, 30, 50, 30]], "xywh"),
        ([[0, 0, 1, 1], [0.5, 0.5, 1, 1]], "relative_xyxy"),
        ([[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]], "relative_xywh"),
    ],
)
def test_scan_features_and_what_their_boxes_are(project: Path, boxes: list | None, convention: str | None) -> None:
    folder = write_scan(project / "scan", None if boxes is None else np.array(boxes))
    output = add("--features", "scan", folder)
    data = added(output).dataset("mine")
    assert (data.source.format, data.source.captions, data.regions.boxes) == ("scan", folder, convention)
    assert "18 images" in output and "2 boxes an image, 8 numbers each: imported from scan" in output
    assert (f"no other convention of boxes than {convention}" in output) == (convention is not None)


def test_boxes_that_could_be_two_conventions_need_the_option(project: Path) -> None:
    folder = write_scan(project / "scan", np.array([[0, 0, 50, 30], [0, 0, 20, 20]]))
    assert "set `--boxes` to xyxy" in refused("--features", "scan", folder)
    assert added(add("--features", "scan", folder, "--boxes", "xywh")).dataset("mine").regions.boxes == "xywh"


def test_without_a_split_that_training_or_evaluation_needs(project: Path) -> None:
    output = add("--features", "scan", write_scan(project / "a", None, ("train", "dev")))
    assert "dvc repro train@mine-vse-infinity" in output and "no image is in the split test" in output
    output = add("--features", "scan", write_scan(project / "b", None, ("train", "test")), name="other")
    assert "nothing is trained: no caption is in the split val" in output


@pytest.mark.parametrize("name", ["demo", "DEMO", "scenes", "2024", "on", "my data"])
def test_a_name_that_is_taken_or_none(project: Path, pictures: Path, name: str) -> None:
    assert name.lower() in refused("--images", pictures, name=name)


def test_twice_is_an_error_that_says_so(project: Path, pictures: Path) -> None:
    add("--images", pictures)
    assert "there is a data set 'mine' already" in (message := refused("--images", pictures))
    assert "selfalign remove mine" in message


def test_paths_that_are_not_there_or_hold_something_else(project: Path, pictures: Path) -> None:
    (project / "empty").mkdir()
    write_scan(project / "scan", None)
    (project / "captions.json").write_text(json.dumps({"images": [1]}))
    table = write_table(project / "t.csv", ["a dog"], ["photo 0.jpg", "gone.jpg"])
    for options, message in (
        ((), "nothing says where the pictures are"),
        (("--images", "nowhere"), "nowhere: the image root is not a folder"),
        (("--images", "params.yaml"), "params.yaml: the image root is not a folder"),
        (("--images", "empty"), "empty: it is no captions file that is known"),
        (("--images", "scan"), "give --features scan scan instead"),
        (("--images", pictures, "--captions", "nowhere.csv"), "nowhere.csv: the file can't be read"),
        (("--images", pictures, "--captions", "empty"), "empty: it is no captions file that is known"),
        (("--images", pictures, "--captions", "params.yaml"), "params.yaml: it is no captions file that is known"),
        (("--images", pictures, "--captions", "captions.json"), "captions.json"),
        (("--images", pictures, "--captions", table), "'gone.jpg'"),
        (("--images", "empty", "--captions", pictures / "captions.json"), "none of 11 pictures is there"),
        (("--features", "scam", "scan"), "scam"),
        (("--features", "scan", "nowhere"), "nowhere: there is no such file or folder"),
        (("--features", "scan", "empty"), "there is none of train_ims.npy"),
        (("--images", pictures, "--boxes", "xyxy"), "boxes and sizes are those of features"),
    ):
        assert message in refused(*options), options


@pytest.mark.parametrize(
    "shared", ["text_features: &none {}\nshared: *none\n", "shared: &none {}\ntext_features: *none\n"]
)
def test_a_section_that_is_shared_by_an_anchor_stays(project: Path, pictures: Path, shared: str) -> None:
    before, _, after = TEXT.partition("text_features: {} # data set: {model: ...}; docs/text.md\n")
    Path("params.yaml").write_text(f"{before}{shared}{after}", encoding="utf-8")
    message = refused("--images", pictures, "--captions", pictures / "captions.json")
    assert "text_features is shared with other places" in message and "without & and *" in message


def test_a_params_file_that_is_wrong_or_being_changed_stays(project: Path, pictures: Path) -> None:
    with sole_writer(Path("params.yaml"), "change of params.yaml"):
        assert "another change of params.yaml is running" in refused("--images", pictures)
    Path("params.yaml").write_text(TEXT + "reprot: {}\n", encoding="utf-8")
    assert "unknown key (did you mean 'report'?)" in refused("--images", pictures)


@pytest.mark.slow
def test_from_pictures_to_a_search_and_away_again(tmp_path: Path, pictures: Path) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_checkout(project)
    before = (project.root / "params.yaml").read_bytes()

    project.command("selfalign", "add", "mine", "--images", str(pictures))
    made = project.repro("evaluate@mine-vse-infinity")
    of_data = {f"{stage}@mine" for stage in ("manifest", "regions", "tokens", "text_features")}
    assert set(made.stages) == of_data | {"train@mine-vse-infinity", "evaluate@mine-vse-infinity"}
    assert project.metrics("mine-vse-infinity")["images"] == 3
    project.command("selfalign", "index", "mine-vse-infinity", "mine")
    caption = json.loads((pictures / "captions.json").read_text("utf-8"))["images"][0]["sentences"][0]["raw"]
    found = project.command("selfalign", "search", caption, "--count", "3").text
    assert re.search(r"^ +1  photo 0 ", found, re.MULTILINE), found

    bare = tmp_path / "bare"
    shutil.copytree(pictures, bare, ignore=shutil.ignore_patterns("*.json"))
    project.command("selfalign", "add", "bare", "--images", str(bare))
    stages = {f"{each}@bare" for each in ("manifest", "regions", "tokens")}
    assert set(project.repro("regions@bare", "tokens@bare").stages) == stages
    found = project.command("selfalign", "search", "--dataset", "bare", "--image", str(bare / "photo 3.jpg")).text
    assert re.search(r"^ +1  photo 3 +1\.0000", found, re.MULTILINE), found

    for name in ("bare", "mine"):
        project.command("selfalign", "remove", name, "--yes")
        assert not (project.root / "data" / name).exists() and f"@{name}" not in (project.root / "dvc.lock").read_text()
    assert (
        not list((project.root / "indexes").glob("*-mine")) and not (project.root / "runs/mine-vse-infinity").exists()
    )
    assert len(list(pictures.iterdir())) == 12 and len(list(bare.iterdir())) == 11
    left = (project.root / "params.yaml").read_bytes()
    assert left == before
    assert "mine" not in project.command("dvc", "stage", "list", "--all").text
