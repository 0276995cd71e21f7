"""A store whose files aren't those of its index is refused, by `require_intact` and so by training and evaluation."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from extract.stores.intact import listed_files, require_intact
from manifests.errors import InputError
from manifests.files import write_json
from train.data import RetrievalData


def flip(path: Path, place: float) -> None:
    """Flip one bit of the byte at `place` (0 to 1) of a file."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def answers(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.intact.json")


def test_every_store_lists_its_files(data_set_copy: Path) -> None:
    assert list(listed_files(data_set_copy / "regions/train")) == [f"00000{n}.h5" for n in range(4)]
    assert list(listed_files(data_set_copy / "tokens")) == ["tokens.h5"]
    packed = [f"tiny-train-00000{n}.tar" for n in range(3)]
    assert list(listed_files(data_set_copy / "pack")) == [*packed, "classes.json", "sizes.json"]
    for store in ("regions/train", "tokens", "pack"):
        require_intact(data_set_copy / store)


@pytest.mark.parametrize("place", [0.0, 0.003, 0.5, 1.0])
@pytest.mark.parametrize(("store", "shard"), [("regions/train", "000002.h5"), ("pack", "tiny-train-000001.tar")])
def test_a_flipped_byte_anywhere_names_the_shard(data_set_copy: Path, store: str, shard: str, place: float) -> None:
    answers(data_set_copy / store).unlink(missing_ok=True)  # packing asked for one
    flip(data_set_copy / store / shard, place)
    with pytest.raises(InputError, match=f"{shard}: the file has changed") as error:
        require_intact(data_set_copy / store)
    assert error.value.where.endswith(shard) and f"`dvc checkout --force {data_set_copy / store}`" in error.value.fix
    assert not answers(data_set_copy / store).exists()


def test_a_change_after_a_good_answer_is_seen(data_set_copy: Path) -> None:
    store = data_set_copy / "regions/train"
    require_intact(store)
    assert answers(store).exists()
    flip(store / "000001.h5", 0.7)
    with pytest.raises(InputError, match=r"000001\.h5"):
        require_intact(store)


def test_a_file_that_has_not_changed_is_read_once(data_set_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = data_set_copy / "regions/train", []

    def counted(path: Path) -> str:
        read.append(path.name)
        return digests[path.name]

    digests = listed_files(store)
    monkeypatch.setattr("extract.stores.intact.sha256", counted)
    require_intact(store)
    require_intact(store)
    assert sorted(read) == sorted(digests)
    os.utime(store / "000003.h5")
    require_intact(store)
    assert read[len(digests) :] == ["000003.h5"]


def test_spoilt_answers_are_worth_nothing(data_set_copy: Path) -> None:
    store = data_set_copy / "regions/train"
    answers(store).write_text('["nonsense"]')
    require_intact(store)
    flip(store / "000000.h5", 0.4)
    answers(store).write_text("{")
    with pytest.raises(InputError, match=r"000000\.h5"):
        require_intact(store)


def test_a_missing_shard_and_a_missing_list_are_named(data_set_copy: Path) -> None:
    (data_set_copy / "pack" / "tiny-train-000002.tar").unlink()
    with pytest.raises(InputError, match=r"tiny-train-000002\.tar: the file is missing"):
        require_intact(data_set_copy / "pack")
    write_json(data_set_copy / "regions/train" / "index.json", {"shards": [{"file": "000000.h5"}]})
    with pytest.raises(InputError, match="no list of files") as error:
        require_intact(data_set_copy / "regions/train")
    assert error.value.where.endswith("index.json") and "dvc pull" in error.value.fix


@pytest.mark.parametrize(("store", "shard"), [("regions/train", "000002.h5"), ("tokens", "tokens.h5")])
def test_training_refuses_what_has_changed(data_set_copy: Path, store: str, shard: str) -> None:
    stores = {name: data_set_copy / name for name in ("regions", "tokens")}
    manifest = data_set_copy / "manifest"
    assert RetrievalData(manifest, **stores, split="train").num_captions == 15
    flip(data_set_copy / store / shard, 0.6)
    with pytest.raises(InputError, match=f"{shard}: the file has changed"):
        RetrievalData(manifest, **stores, split="train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_store_that_is_only_read_is_checked_all_the_same(data_set_copy: Path) -> None:
    data_set_copy.chmod(0o555)
    require_intact(data_set_copy / "regions/train")
    data_set_copy.chmod(0o755)


def test_other_stores_have_answers_of_their_own(data_set_copy: Path) -> None:
    require_intact(data_set_copy / "regions/train")
    other = shutil.copytree(data_set_copy / "regions/train", data_set_copy / "others")
    rng = np.random.default_rng(0)
    flip(other / "000001.h5", rng.random())
    with pytest.raises(InputError, match="others"):
        require_intact(other)


def test_a_store_that_was_never_made_is_to_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path / "demo")
    for folder in (tmp_path / "demo" / "tokens", Path("tokens")):
        with pytest.raises(InputError, match=r"tokens: there is no such store.*`dvc repro tokens@demo`"):
            require_intact(folder)
    Path("tokens.dvc").touch()
    with pytest.raises(InputError, match=r"fetch it, with `dvc pull tokens\.dvc`"):
        require_intact(Path("tokens"))
