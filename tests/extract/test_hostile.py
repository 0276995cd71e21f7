"""Files that want to run, to wait forever or to take all memory: refused, with their place, and nothing is left."""

import io
import os
import pickle
import resource
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.stores.regions import RegionStore
from extract.vision import one_picture as picture
from extract.vision.rcnn.checkpoint import read_checkpoint
from extract.vision.weights import local_weights
from manifests import manifest
from manifests.errors import InputError
from manifests.jsonl import read_utf8
from manifests.unpickle import Refused, unpickle
from tests.extract.alone import run_alone
from tests.extract.exchange_files import DataSet, way_back, write_data_set
from tests.extract.region_files import large_png, region_settings, scene_files, write_pictures

KINDS = ("pipe", "device", "socket", "folder")


def put(kind: str, path: Path) -> None:
    """What is no file, at `path`, which may have one."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        os.mknod(path, 0o600 | 0o140000)
    else:
        path.mkdir()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("exchange") / "data")


# -- Only files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_picture_should_be(kind: str, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "p", scene_files(2))
    put(kind, pictures.images / "001.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\n000.png,A ring.\n001.png,A star.\n")
    with pytest.raises(InputError, match=f"line 3: image '001.png' can't be read .*it is a {kind}, not a file"):
        manifest.run(images=pictures.images, captions=captions, format="folder", out=tmp_path / "manifest")
    with pytest.raises(InputError, match=f"image 'id-001.png' .*it is a {kind}, not a file"):
        pictures.extract(region_settings(unreadable="skip"))
    settings = region_settings()
    with pytest.raises(InputError, match=f"001.png: it can't be read.*it is a {kind}, not a file"):
        search_by(pictures.images / "001.png", settings)


def search_by(path: Path, settings: Any) -> None:
    from extract.vision.loading import load_detector

    recipe = {"detector": load_detector(settings.detector, settings.selection).recipe}
    reader = picture.PictureReader(settings, recipe | {"selection": settings.selection.model_dump()})
    reader.read(path, path.name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_where_captions_should_be(kind: str, suffix: str, tmp_path: Path) -> None:
    captions = tmp_path / f"captions{suffix}"
    put(kind, captions)
    format = "karpathy" if suffix == ".json" else "folder"
    with pytest.raises(InputError, match=f"captions{suffix}: .*it is a {kind}, not a file"):
        manifest.run(images=tmp_path, captions=captions, format=format, out=tmp_path / "manifest")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("butd-tsv", "regions.tsv"),
        ("vinvl", "predictions.tsv"),
        ("vinvl", "features.lineidx"),
        ("vinvl", "imageid2idx.json"),
        ("bua-npz", "1003.npz"),
        ("scan", "train_ims.npy"),
        ("scan", "dev_boxes.npy"),
        ("scan", "test_caps.txt"),
        ("scan", "test_ids.txt"),
        ("scan", "id_mapping.json"),
        ("wds", "*-train-000000.tar"),
        ("butd-tsv", "captions.json"),
    ],
)
def test_where_a_file_to_import_should_be(data: DataSet, tmp_path: Path, kind: str, format: str, name: str) -> None:
    exported = exported_of(data, tmp_path, format)
    (path,) = exported.glob(name)
    put(kind, path)
    with pytest.raises(InputError) as caught:
        way_back(format, exported, tmp_path / "back").run()
    assert path.name in str(caught.value)
    assert kind == "folder" or f"it is a {kind}, not a file" in str(caught.value) or format == "wds"


@pytest.mark.parametrize("kind", KINDS)
def test_where_weights_should_be(kind: str, tmp_path: Path) -> None:
    put(kind, tmp_path / "weights.pth")
    for address in (str(tmp_path / "weights.pth"), f"file://{tmp_path}/weights.pth"):
        with pytest.raises(InputError, match="weights.pth"):
            local_weights(address, "0" * 64)
    for suffix in (".pth", ".pkl", ".safetensors"):
        path = (tmp_path / "weights.pth").rename(tmp_path / f"w{suffix}")
        with pytest.raises(InputError, match=f"it is a {kind}, not a file"):
            read_checkpoint(path)
        path.rename(tmp_path / "weights.pth")


def exported_of(data: DataSet, tmp_path: Path, format: str) -> Path:
    """An export; wds asks for tokens, which captions are cut into only here."""
    if format == "wds" and not (data.folder / "tokens").exists():
        from extract.stages import tokens
        from extract.text.settings import TokenSettings

        settings = TokenSettings(language="blank_en", min_count=1)
        tokens.run(manifest=data.manifest, settings=settings, out=data.folder / "tokens")
    return data.export(format, tmp_path / "exported")


# -- Bounds ------------------------------------------------------------------------------------------------------------


def test_a_picture_above_max_pixels_is_a_refusal_or_a_failure(tmp_path: Path) -> None:
    large = {"a.png": large_png(13300, 13300, rows=1), "b.png": large_png(13300, 13300, rows=1)}
    pictures = write_pictures(tmp_path / "p", scene_files(1) | large)
    message = "13300 x 13300 are 176,890,000 pixels, above max_pixels, which is 64,000,000"
    with pytest.raises(InputError, match=f"a.png: image 'id-a.png' can't be read: {message}"):
        pictures.extract(region_settings())
    pictures.extract(region_settings(unreadable="skip"))
    assert (pictures.out / "failures.jsonl").read_text().count(message) == 2
    few = region_settings(unreadable="skip", max_pixels=160 * 160)
    assert pictures.extract(few, out=tmp_path / "few").joinpath("recipe.json").read_bytes() == (
        (pictures.out / "recipe.json").read_bytes()
    )
    with pytest.raises(InputError, match="25,600 pixels, above max_pixels, which is 25,599"):
        search_by(pictures.images / "000.png", region_settings(max_pixels=160 * 160 - 1))


def test_pictures_above_the_bound_are_refused_whatever_the_cache_knows(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "p", scene_files(3) | {"x.png": b""})
    with pytest.raises(InputError):
        pictures.extract(region_settings(images_per_shard=1))
    assert len(list(pictures.cache.glob("regions/*/*/*.h5"))) == 3
    for size in (1, 4):
        with pytest.raises(InputError, match="25,600 pixels"):
            pictures.extract(region_settings(images_per_shard=size, max_pixels=99))
    skipping = region_settings(images_per_shard=1, max_pixels=25_600, unreadable="skip")
    pictures.extract(skipping)
    assert len(RegionStore(pictures.out)) == 3
    pictures.extract(skipping.model_copy(update={"max_pixels": 10**6}))
    assert len(RegionStore(pictures.out)) == 3


_IMPORT = """
import sys
from manifests.errors import InputError
from tests.extract.exchange_files import Import
from pathlib import Path
folder, name, format = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
try:
    if format == "folder":
        from manifests import manifest
        manifest.run(images=folder, captions=folder / name, format="karpathy" if name.endswith("json") else format,
                     out=folder / "out")
    else:
        Import(format, folder / name, folder / "out", folder / "c.jsonl").run()
except InputError as error:
    print(error)
print(peak())
"""


@pytest.mark.parametrize(
    ("format", "name", "message"),
    [
        ("butd-tsv", "x.tsv", "x.tsv row 0: it is longer than 64 MB"),
        ("lxmert-tsv", "x.tsv", "x.tsv row 0: it is longer than 64 MB"),
        ("folder", "x.tsv", "x.tsv line 1: it is longer than 64 MB"),
        ("folder", "x.jsonl", "x.jsonl line 1: it is longer than 64 MB"),
        ("folder", "x.json", "x.json line 1: byte 0 (0x00) is of no text"),
        ("bua-npz", "x.npz", "x.npz: 629,145,600 bytes are no single image's"),
    ],
)
def test_600_megabytes_without_an_end_of_line(tmp_path: Path, format: str, name: str, message: str) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(600 * 2**20)
    (tmp_path / "c.jsonl").write_text('{"image": "a", "captions": ["A cap."]}\n')
    *said, peak = run_alone(_IMPORT, tmp_path, name, format).splitlines()
    assert message in said[0] and int(peak) < 1000


def test_a_text_that_is_larger_than_a_text_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**36)
    with pytest.raises(InputError, match="68,719,476,736 bytes, and a text that is read as a whole may have"):
        read_utf8(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.replace(b"(6, 8), }", b"(16000000000,1),}"), "its shape [16000000000, 1] needs 64000"),
        (lambda header: header.replace(b"(6, 8), }", b"(-6, -8),}"), "not an array of numbers"),
        (lambda header: header.replace(b"'<f4', ", b"'|O',  "), "it holds pickled Python objects"),
        (lambda header: header.replace(b"'<f4'", b"'<U9'"), "not an array of numbers"),
        (lambda header: header.replace(b"(6, 8)", b"(" * 90), "not a .npy array"),
    ],
)
def test_an_npz_that_claims(data: DataSet, tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    exported = data.export("bua-npz", tmp_path / "exported")
    rewritten(exported / "1002.npz", "x.npy", change)
    with pytest.raises(InputError) as caught:
        way_back("bua-npz", exported, tmp_path / "back").run()
    assert "1002.npz x" in str(caught.value) and message in str(caught.value)


def rewritten(path: Path, member: str, change: Callable[[bytes], bytes], **how: Any) -> None:
    """Pass one member of an archive through `change`."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in contents.items():
            archive.writestr(name, change(content) if name == member else content)


@pytest.mark.parametrize("claimed", [2**36, 96 + 128])
def test_a_member_that_unpacks_to_more_than_it_says(data: DataSet, tmp_path: Path, claimed: int) -> None:
    """The archive's directory says how large a member is: 64 GB, or far less than the 400 MB that it unpacks to."""
    exported = data.export("bua-npz", tmp_path / "exported")
    path = exported / "1000.npz"
    rewritten(path, "x.npy", lambda _: bytes(400 * 2**20), compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    size = struct.pack("<I", 400 * 2**20)
    if claimed < 2**32:
        path.write_bytes(content.replace(size, struct.pack("<I", claimed)))
    else:
        path.write_bytes(content.replace(size, struct.pack("<I", 2**32 - 2)))
    for other in list(exported.glob("*.npz")):
        if other != path:
            other.unlink()
    (exported / "c.jsonl").write_text('{"image": "1000", "captions": ["A cap."]}\n')
    *said, peak = run_alone(_IMPORT, exported, "1000.npz", "bua-npz").splitlines()
    assert "1000.npz: 'x' can't be unpacked" in said[0] and int(peak) < 350


# -- Pickles -----------------------------------------------------------------------------------------------------------


class Call:
    """Pickled, it asks for a function to be called."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.message = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.message


OBJECTS, NUMBERS = np.dtype(object), np.dtype("f8")
_reconstruct = np._core.multiarray._reconstruct
_scalar = np._core.multiarray.scalar
_frombuffer = np._core.numeric._frombuffer
ADDRESSES = bytes(range(64))  # would be taken for pointers to objects

FORGED = {
    "objects of bytes": Call(_reconstruct, np.ndarray, (0,), b"b", state=(1, (8,), OBJECTS, False, ADDRESSES)),
    "a buffer of objects": Call(_frombuffer, ADDRESSES, OBJECTS, (8,), "C"),
    "an object scalar": Call(_scalar, OBJECTS, ADDRESSES[:8]),
    "ndarray itself": Call(np.ndarray, (8,), OBJECTS, ADDRESSES),
    "64 GB of ndarray": Call(np.ndarray, (8 * 10**9,), NUMBERS),
    "64 GB of state": Call(_reconstruct, np.ndarray, (0,), b"b", state=(1, (8 * 10**9,), NUMBERS, False, ADDRESSES)),
    "64 GB to begin with": Call(_reconstruct, np.ndarray, (8 * 10**9,), b"d"),
    "64 GB of a buffer": Call(_frombuffer, ADDRESSES, NUMBERS, (8 * 10**9,), "C"),
    "64 GB of bytes": Call(bytes, 2**36),
    "64 GB of a bytearray": Call(bytearray, 2**36),
    "a type of fields": Call(_frombuffer, ADDRESSES, Call(np.dtype, "O,O"), (8,), "C"),
    "a wide type": Call(_scalar, Call(np.dtype, "V64000000000"), b""),
    "a type turned to objects": Call(
        _frombuffer,
        ADDRESSES,
        Call(np.dtype, "f8", state=(3, "|", None, ("a",), {"a": (OBJECTS, 0)}, 8, 1, 27)),
        (8,),
        "C",
    ),
    "a list": Call(list, range(10**10)),
    "a function": Call(os.mkdir, "made"),
    "a getter": Call(getattr, "text", "upper"),
    "import": Call(__import__, "os"),
}

OPCODES = {
    "a memo of 64 GB": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a memo of 64 GB in text": b"Np4294967295\n.",
    "bytes of 64 GB": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b"x.",
    "text of 64 GB": b"\x80\x04\x8d" + struct.pack("<Q", 2**36) + b"x.",
    "a bytearray of 64 GB": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"x.",
    "a frame of 64 GB": b"\x80\x04\x95" + struct.pack("<Q", 2**36) + b"N",
    "a number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "a key that takes forever": b"\x80\x02}(" + b")" + b"2\x86" * 100 + b"Nu.",
    "a set that takes forever": b"\x80\x04\x8f()" + b"2\x86" * 100 + b"\x90.",
    "a class that takes forever": b"\x80\x02)" + b"2\x86" * 100 + b")\x81.",
    "a million copies": b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", 10**6) + b"x" * 10**6
    + b"q\x01X\x06\x00\x00\x00latin1q\x020" + b"h\x00h\x01h\x02\x86R" * 10**4 + b".",
    "a cut": pickle.dumps({"a": np.zeros(9)})[:-9],
    "nothing": b"",
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("what", FORGED)
def test_forged_objects(what: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"model": {"w": FORGED[what]}}, protocol)
    refused_everywhere(data, tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", OPCODES)
def test_opcodes_that_claim_or_take_forever(what: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "memo" in what:  # here a memo is as large as what is in it
        assert unpickle(io.BytesIO(OPCODES[what])) is None
    else:
        refused_everywhere(OPCODES[what], tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def refused_everywhere(data: bytes, folder: Path) -> None:
    """As an npz's info and in both kinds of checkpoints."""
    with pytest.raises(Refused):
        unpickle(io.BytesIO(data))
    (folder / "a.pkl").write_bytes(data)
    torch.save({"model": {}}, folder / "a.pth")
    rewritten(folder / "a.pth", "a/data.pkl", lambda _: data)
    for name in ("a.pkl", "a.pth"):
        with pytest.raises(InputError, match=f"{name}: (not a checkpoint of tensors or arrays|holds no parameters)"):
            read_checkpoint(folder / name)


@pytest.mark.parametrize("what", ["objects of bytes", "64 GB of state", "a function"])
def test_an_npz_that_forges_objects(data: DataSet, tmp_path: Path, what: str) -> None:
    exported = data.export("bua-npz", tmp_path / "exported")
    facts = np.empty((), object)
    facts[()] = {"objects_id": FORGED[what]}
    with np.load(exported / "1002.npz", allow_pickle=True) as file:
        arrays = {name: file[name] for name in file.files} | {"info": facts}
    np.savez(exported / "1002.npz", **arrays)
    assert len(way_back("bua-npz", exported, tmp_path / "back").run().store) == 10  # it isn't looked at
    with pytest.raises(InputError, match="1002.npz info: its object can't be read.*leave out `regions.info`"):
        way_back("bua-npz", exported, tmp_path / "again", info=True).run()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (torch.zeros(2, 3), (9, 10**10)),  # a larger shape
        (torch.zeros(2, 3), "expanded"),
    ],
)
def test_a_tensor_larger_than_its_storage(tmp_path: Path, old: torch.Tensor, new: Any) -> None:
    if new == "expanded":
        torch.save({"w": torch.zeros(1).expand(2**36)}, tmp_path / "a.pth")
    else:
        torch.save({"w": old}, tmp_path / "a.pth")
        shape = pickle.dumps((2, 3), 2)[2:-3]
        rewritten(tmp_path / "a.pth", "a/data.pkl", lambda data: data.replace(shape, b"K\x02K\xff\x86"))
    with pytest.raises(InputError, match="not a checkpoint of tensors or arrays .a tensor of shape"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["now", "before torch 1.6"])
def test_checkpoints_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0)
    state = OrderedDict(whole=base.view(4, 6), part=base.view(4, 6)[1:, ::2], turned=base.view(4, 6).t())
    state |= {
        str(kind): torch.ones(3, 2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int64, torch.bool)
    }
    state |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.5), "array": np.arange(6.0).reshape(2, 3)}
    state |= {"parameter": torch.nn.Parameter(torch.ones(2)), "column": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    state._metadata = {"": {"version": 1}}
    content = {"model": state, "args": Namespace(lr=0.1, out=tmp_path), "device": torch.device("cpu"), "epoch": {3, 4}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], torch.as_tensor(value).float()), name


def test_pickles_of_all_protocols_are_read_as_pickle_reads_them() -> None:
    plain = {"a": [1, 2.5, "é", b"\xff", None, True, (1, ()), {3, 4}, frozenset([1]), 2**80, -5], "b": OrderedDict(a=1)}
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.zeros((0, 4)), np.array(5, ">i2")]
    arrays += [np.float32(3), np.int64(4), np.bool_(True), np.arange(10)[::2], np.ones((2, 2), np.complex64)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert unpickle(io.BytesIO(pickle.dumps(plain, protocol))) == plain
        for value, found in zip(arrays, unpickle(io.BytesIO(pickle.dumps(arrays, protocol))), strict=True):
            np.testing.assert_array_equal(found, value)
            assert np.asarray(found).dtype == value.dtype.newbyteorder("=")
        same = np.ones(3)
        one, other = unpickle(io.BytesIO(pickle.dumps([same, same], protocol)))
        assert one is other


def test_keys_made_to_collide_are_refused_at_once() -> None:
    keys = {k * (2**61 - 1): None for k in range(1, 6000)}
    with pytest.raises(Refused, match="more than 5000 keys"):
        unpickle(io.BytesIO(pickle.dumps(keys)))
    assert unpickle(io.BytesIO(pickle.dumps({(1, "a"): 2}))) == {(1, "a"): 2}
