"""How an import goes about its work: killed and continued, files that change meanwhile, memory, the commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from extract.engine.finished import Staging
from extract.exchange.formats import open_source
from extract.settings import ImportSettings
from extract.stores.intact import require_intact
from manifests.errors import DiskFull, InputError
from pipeline.cli import main
from tests.extract.disks import Disk
from tests.extract.exchange_files import DataSet, Import, way_back, write_data_set
from tests.extract.test_exchange_bad import change_field
from tests.extract.test_exchange_roundtrip import FORMATS, with_tokens
from tests.extract.test_intact import flip

CHECKOUT = Path(__file__).parents[2]
RUN = """
import re, sys
from pathlib import Path
from pipeline.cli import main

main(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # kB; of this program alone
"""


def write_features(folder: Path, images: int) -> Path:
    """SCAN's layout of so many images, 36 regions of 512 numbers (74 kB) each."""
    folder.mkdir()
    features = np.lib.format.open_memmap(folder / "train_ims.npy", "w+", np.float32, (images, 36, 512))
    features[:] = np.arange(36 * 512, dtype=np.float32).reshape(36, 512) / 512
    features[:, 0, 0] = np.arange(images)
    features.flush()
    (folder / "train_caps.txt").write_text("A caption.\n" * images, encoding="utf-8")
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", RUN, *map(str, arguments)]


def peak(tmp_path: Path, *arguments: object) -> int:
    """What the command needs of memory at most, in kB."""
    environment = staged_in(tmp_path)
    done = subprocess.run(
        command(*arguments),
        **{"cwd": CHECKOUT, "env": environment, "capture_output": True, "text": True, "check": False},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    imports, exports = [], []
    for images in (300, 3000):
        folder, store = write_features(tmp_path / f"{images}", images), tmp_path / f"out-{images}"
        imports.append(peak(tmp_path, "import", "scan", folder, store, "--images-per-shard", 64))
        exports.append(peak(tmp_path, "export", "scan", store, tmp_path / f"exported {images}"))
    assert imports[1] - imports[0] < 40_000  # kB; the larger file has 221 MB
    assert exports[1] - exports[0] < 40_000  # the larger store has 111 MB


def test_a_killed_import_continues(tmp_path: Path) -> None:
    folder, out = write_features(tmp_path / "scan", 120), tmp_path / "out"
    importing = ("import", "scan", folder, out, "--images-per-shard", 2)
    where = {"cwd": CHECKOUT, "env": staged_in(tmp_path)}
    process = subprocess.Popen(command(*importing), **where, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(tmp_path.glob("staging/*/*.json"))) <= 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    staged = {path.stat().st_mtime_ns for path in tmp_path.glob("staging/*/*.h5")}
    again = subprocess.run(command(*importing), **where, capture_output=True, text=True, check=True)
    assert "continuing" in again.stdout
    store = DataSet(out).store
    assert [int(store.regions(row).features[0, 0]) for row in range(120)] == list(range(120))
    kept = [path.name for path in (out / "regions").glob("*/*.h5") if path.stat().st_mtime_ns in staged]
    assert len(kept) >= 20
    assert not any((tmp_path / "staging").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scan", "staging"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_changed_since_the_manifest_is_noticed(tmp_path: Path, format: str) -> None:
    data, other = (with_tokens(write_data_set(tmp_path / f"{scale}" / "data", scale=scale)) for scale in (1, -1))
    exported = data.export(format, tmp_path / "exported")
    work = way_back(format, exported, tmp_path / "back")
    work.manifest()
    shutil.rmtree(exported)
    other.export(format, exported)
    with pytest.raises(InputError, match="changed since the manifest was made"):
        work.regions()
    assert not (tmp_path / "back" / "regions").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_hashing_again_can_be_given_up(tmp_path: Path, format: str) -> None:
    exported = with_tokens(write_data_set(tmp_path / "data")).export(format, tmp_path / "exported")
    work = way_back(format, exported, tmp_path / "back")
    source = open_source(format, work.images, **ImportSettings(**work.settings).given)

    def give_up(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.hash_again(give_up)


class Files:
    """Files that take half a minute to hash."""

    def __init__(self) -> None:
        self.hashed = False

    def hash_again(self, advance: Callable[[int], object]) -> dict[str, str]:
        for _ in range(3000):
            advance(1)
            time.sleep(0.01)
        self.hashed = True
        return {}


def test_an_error_does_not_wait_for_the_hash_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = write_data_set(tmp_path / "data").export("scan", tmp_path / "exported")
    features = np.load(exported / "train_ims.npy")
    features[2] = 1e6
    np.save(exported / "train_ims.npy", features)
    work, files = way_back("scan", exported, tmp_path / "back"), Files()
    way_back("scan", exported, tmp_path / "back", precision="float32").manifest()
    monkeypatch.setattr(
        "extract.exchange.formats.scan.ScanSource.hash_again", lambda _, advance: files.hash_again(advance)
    )
    with pytest.raises(InputError, match=r"train_ims\.npy row 2 .*float16 ends at 65504"):
        work.regions()
    assert not files.hashed


def test_a_shard_that_cannot_be_finished_ends_the_import_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def publish(staged: Staging, draft: Path, *_: object) -> None:
        asked.append(draft)
        raise DiskFull("No space left on device", where=draft, fix="make room")

    monkeypatch.setattr(Staging, "publish", publish)
    work = Import("scan", write_features(tmp_path / "scan", 40), tmp_path / "out", settings={"images_per_shard": 4})
    work.manifest()
    with pytest.raises(DiskFull, match="finished shards wait in"):
        work.regions()
    assert len(asked) == 1
    assert len(list((tmp_path / "out" / "staging").rglob(".*.tmp"))) <= 2


def test_other_parameters_do_not_continue_an_import(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", dtype="float32")
    exported = data.export("scan", tmp_path / "exported")
    work = way_back("scan", exported, tmp_path / "back", precision="float16")
    work.manifest()
    other = way_back("scan", exported, tmp_path / "back", precision="float32")
    work.regions()
    first = DataSet(work.out).store.recipe_hash
    other.regions()
    assert DataSet(work.out).store.recipe_hash != first


def test_a_full_disk_leaves_no_store(tmp_path: Path, disk: Disk) -> None:
    folder = write_features(tmp_path / "scan", 40)
    with pytest.raises(InputError, match=r"make room.*finished shards wait in .*staging/\w+, and the same command"):
        Import("scan", folder, disk.folder / "out", settings={"images_per_shard": 8}).run()
    assert not (disk.folder / "out" / "regions").exists()


def staged_in(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"SELFALIGN_STAGING": str(tmp_path / "staging")}


def run(tmp_path: Path, *arguments: object, ends_with: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=staged_in(tmp_path))
    assert result.exit_code == ends_with, result.output
    return result.output


@pytest.mark.parametrize("row", [0, 9])
def test_a_failed_import_leaves_nothing_behind(tmp_path: Path, row: int) -> None:
    exported = write_data_set(tmp_path / "data").export("butd-tsv", tmp_path / "exported")
    change_field("regions.tsv", row, 5, lambda field: field[:-8])(exported)
    before = sorted(tmp_path.rglob("*"))
    files = ("butd-tsv", exported / "regions.tsv", tmp_path / "back")
    captions = ("--captions", exported / "captions.json", "--images-per-shard", 2)
    text = run(tmp_path, "import", *files, *captions, ends_with=1)
    assert f"row {row} (image" in text or f"row {row}:" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_are_refused_before_any_file_is_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data_set(tmp_path / "data")
    scan, butd = (data.export(format, tmp_path / format) for format in ("scan", "butd-tsv"))
    for place in ("extract.exchange.formats.scan.sha256", "extract.exchange.tsv.lines"):
        monkeypatch.setattr(place, None)  # called, it would be a TypeError
    table, captions = butd / "regions.tsv", ("--captions", butd / "captions.json")
    (tmp_path / "empty.csv").write_text("image,caption\n", encoding="utf-8")
    for arguments, message in (
        (("scan", scan), "doesn't state the convention of its boxes. Fix: set `--boxes` to xyxy, xywh, relative_xyxy"),
        (("scan", scan, "--boxes", "relative-xyxy"), "--boxes: Input should be 'xyxy', 'xywh', 'relative_xyxy' or"),
        (("scan", scan, "--boxes", "xyxy", "--info"), "leave out `--info`"),
        (("scan", scan, "--boxes", "xyxy", "--images-per-shard", 0), "--images-per-shard: Input should be greater"),
        (("scan", tmp_path / "nowhere"), "check `IMAGES`"),
        (("butd-tsv", table), "name a file of captions with `--captions`"),
        (("butd-tsv", table, "--captions", tmp_path / "nowhere.csv"), "nowhere.csv"),
        (("butd-tsv", table, "--captions", tmp_path / "empty.csv"), "there are no images"),
        (("butd-tsv", table, *captions, "--boxes", "xyxy"), "leave out `--boxes`"),
        (("butd-tsv", table, *captions, "--missing", "maybe"), "--missing: Input should be 'refuse' or 'skip'"),
    ):
        text = run(tmp_path, "import", *arguments[:2], tmp_path / "back", *arguments[2:], ends_with=1)
        assert message in text, text
        assert not re.search(r"`(source|regions)\.", text)
    text = run(tmp_path, "import", "scan", scan, data.folder, "--boxes", "xyxy", ends_with=1)
    assert "it is there already" in text
    assert not (tmp_path / "back").exists() and not (tmp_path / "staging").exists()


def test_the_commands_of_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_data_set(tmp_path / "data" / "demo")
    data.export("scan", tmp_path / "files" / "f30k_precomp")
    data.export("butd-tsv", tmp_path / "butd")
    (tmp_path / "butd" / "regions.tsv").rename(tmp_path / "files" / "trainval_36.tsv")
    (tmp_path / "butd" / "captions.json").rename(tmp_path / "dataset_coco.json")
    pages = "".join((CHECKOUT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/exchange.md"))
    lines = [line.split("#")[0] for line in re.findall(r"^selfalign (?:import|export) .+", pages, re.M)]
    commands = dict.fromkeys(tuple(line.replace(" /data/", f" {tmp_path}/files/").split()[1:]) for line in lines)
    assert len(commands) == 4 and len(lines) == 5
    outputs = [run(tmp_path, *words) for words in commands]
    assert "files/demo_precomp: dev_boxes.npy, dev_caps.txt, " in outputs[0] and " and 8 more" in outputs[0]
    assert "files/demo_again: 10 images, 60 regions of 8 numbers" in outputs[1]
    for name in ("f30k", "coco", "demo_again"):
        assert "sound" in run(tmp_path, "verify", tmp_path / "files" / name)
    assert (tmp_path / "files" / "demo_precomp" / "train_ims.npy").exists()


def test_options_are_named_where_a_file_asks_for_them(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", dtype="float32")
    exported = data.export("bua-npz", tmp_path / "exported")
    with np.load(exported / "1003.npz", allow_pickle=True) as file:
        arrays = dict(file)
    np.savez(exported / "1003.npz", **arrays | {"x": arrays["x"] + 1e6, "info": np.array([7])})
    command = ("import", "bua-npz", exported, tmp_path / "back", "--captions", exported / "captions.json")
    assert "set `--precision float32`" in run(tmp_path, *command, ends_with=1)
    assert "leave out `--info`" in run(tmp_path, *command, "--info", "--precision", "float32", ends_with=1)
    (exported / "1009.npz").unlink()
    assert "set `--missing skip`" in run(tmp_path, *command, "--precision", "float32", ends_with=1)
    run(tmp_path, *command, "--missing", "skip", "--precision", "float32")


def test_commands_go_there_and_back(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data")
    run(tmp_path, "export", "scan", data.folder, tmp_path / "scan")
    run(tmp_path, "import", "scan", tmp_path / "scan", tmp_path / "back", "--boxes", "xyxy", "--images-per-shard", 3)
    assert "\nequivalent" in run(tmp_path, "compare", data.folder / "regions", tmp_path / "back" / "regions")
    assert "sound" in run(tmp_path, "verify", tmp_path / "back" / "regions")
    text = run(tmp_path, "import", "scan", tmp_path / "scan", tmp_path / "back", "--boxes", "xyxy", ends_with=1)
    assert "it is there already" in text
    text = run(tmp_path, "import", "scan", tmp_path / "scan", tmp_path / "new", "--boxes", "corners", ends_with=1)
    assert "--boxes" in text and "xyxy" in text
    source = json.loads((tmp_path / "back" / "manifest" / "source.json").read_text(encoding="utf-8"))
    assert source["imported"]["format"] == "scan"
    run(tmp_path, "export", "vinvl", tmp_path / "back", tmp_path / "vinvl")
    captions = ("--captions", tmp_path / "vinvl" / "captions.json")
    run(tmp_path, "import", "vinvl", tmp_path / "vinvl", tmp_path / "again", *captions)
    assert "identical" in run(tmp_path, "compare", tmp_path / "back" / "regions", tmp_path / "again" / "regions")


def test_a_damaged_import_is_to_be_imported_again(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data")
    back = way_back("scan", data.export("scan", tmp_path / "scan"), tmp_path / "back").run().folder / "regions/train"
    flip(back / "000000.h5", 0.5)
    with pytest.raises(InputError) as error:
        require_intact(back)
    assert f"`selfalign import scan IMAGES {tmp_path / 'back'}`" in error.value.fix and "dvc" not in error.value.fix
    (tmp_path / "dvc.lock").write_text("stages:\n  regions@back:\n    outs:\n    - path: back/regions/train\n")
    with pytest.raises(InputError, match=f"dvc checkout --force {back}"):
        require_intact(back)


def test_images_that_the_captions_do_not_name_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exported = write_data_set(tmp_path / "data").export("butd-tsv", tmp_path / "exported")
    annotations = json.loads((exported / "captions.json").read_text(encoding="utf-8"))
    annotations["images"] = annotations["images"][:7]
    (exported / "captions.json").write_text(json.dumps(annotations), encoding="utf-8")
    assert len(way_back("butd-tsv", exported, tmp_path / "back").run().store) == 7
    assert "3 images have regions but no captions and are left out: 1007 ..." in caplog.text
