"""Training from addresses: every caption once, equal parts, the stated window, and shards that changed are refused."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from multiprocessing import Queue
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from extract.settings import PackSettings
from extract.stages import pack
from extract.stores.recipe import write_recipe
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.tables import Manifest
from tests.extract.test_intact import flip
from tests.pipeline import servers
from tests.pipeline.recipes import placed, recipe
from tests.train.runs import train_run
from train import stream
from train.data import RetrievalData
from train.epochs import epochs_of
from train.settings import RunSettings
from train.stream import CaptionStream, open_shards, shuffled

Captions = dict[str, list[tuple[int, str]]]

NAMES = [f"small-train-00000{number}.tar" for number in range(5)]  # of 70, 70, 70, 70 and 20 images
PATTERN = "small-train-{000000..000004}.tar"


@pytest.fixture(scope="session")
def packed(dataset: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "pack"
    pack.run(dataset="small", **dataset, settings=PackSettings(images_per_shard=70), out=out)
    return out


@pytest.fixture
def packed_copy(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


@pytest.fixture(scope="session")
def captions(dataset: dict[str, Path]) -> Captions:
    """Image id of the train split -> its captions, numbered over the split."""
    rows = [row for row in Manifest.open(dataset["manifest"]).captioned if row.split == "train"]
    numbers = count()
    return {row.id: [(next(numbers), text) for text in row.captions] for row in rows}


@pytest.fixture(params=["path", "file", "http", "s3"])
def address(request: pytest.FixtureRequest, packed: Path, tmp_path: Path) -> Iterator[str]:
    """Where the shards lie, four times over."""
    if request.param == "http":
        text = f"server {{\nlisten 80;\nroot {packed.parent};\n}}\n"
        with servers.nginx(tmp_path, lambda listen: text.replace("listen 80", listen)) as url:
            yield f"{url}/{packed.name}"
    elif request.param == "s3":
        s3fs = pytest.importorskip("s3fs", reason="s3fs isn't installed (the extra `s3` has it)")
        with servers.s3("lab-features") as url, pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem(skip_instance_cache=True).put(str(packed), "lab-features/demo", recursive=True)
            yield "s3://lab-features/demo"
    else:
        yield f"{'file://' if request.param == 'file' else ''}{packed}"


def drawn(packed: Path | str, captions: Captions, *, epoch: int = 0, **options: int) -> list[int]:
    """The captions of one epoch in their order."""
    shards, _ = open_shards([f"{packed}/{PATTERN}"])
    found = CaptionStream(shards, captions, **{"window": 200, "seed": 0} | options)
    found.set_epoch(epoch)
    return [caption for caption, _ in found]


def test_every_address_gives_every_caption_once_with_its_regions(
    address: str, packed: Path, captions: Captions, dataset: dict[str, Path]
) -> None:
    shards, recipe = open_shards([f"{address}/{PATTERN}"])
    assert [shard.url for shard in shards] == [f"{address}/{name}" for name in NAMES]
    store = RegionStore(dataset["regions"])
    assert recipe["regions"] == store.recipe
    image_of = {caption: image for image, own in captions.items() for caption, _ in own}
    stream_ = CaptionStream(shards, captions, window=200, seed=0)
    found = list(stream_)
    assert len(stream_) == len(found)
    assert sorted(caption for caption, _ in found) == list(range(1500))
    for caption, regions in found[::50]:
        expected = store.regions(store.row(image_of[caption]))
        np.testing.assert_array_equal(regions.features, expected.features)
        np.testing.assert_array_equal(regions.boxes, expected.boxes)
        assert regions.image_size == expected.image_size
    # By path or over the net, the same order.
    assert [caption for caption, _ in found] == drawn(packed, captions)


def test_epochs_and_seeds_have_orders_of_their_own(packed: Path, captions: Captions) -> None:
    first = drawn(packed, captions)
    assert drawn(packed, captions) == first
    for other in (drawn(packed, captions, epoch=1), drawn(packed, captions, seed=1)):
        assert other != first and sorted(other) == sorted(first)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_have_equal_parts_that_never_overlap(packed: Path, captions: Captions, ranks: int) -> None:
    for epoch in range(2):
        parts = [drawn(packed, captions, epoch=epoch, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert {len(part) for part in parts} == {1500 // ranks}
        assert len(set().union(*parts)) == ranks * (1500 // ranks)


def test_workers_have_equal_parts_too(packed: Path, captions: Captions) -> None:
    shards, _ = open_shards([f"{packed}/{PATTERN}"])
    found = CaptionStream(shards, captions, window=200, seed=0, rank=1, ranks=2)
    loader = DataLoader(found, batch_size=None, num_workers=2, multiprocessing_context="fork", collate_fn=_caption)
    seen = list(loader)
    assert len(seen) == len(set(seen)) == 2 * (1500 // 4)
    assert not set(seen) & set(drawn(packed, captions, rank=0, ranks=2))


def _caption(item: tuple[int, object]) -> int:
    return item[0]


@pytest.mark.parametrize("window", [1, 10, 100, 5000])
def test_nothing_is_drawn_before_its_window_or_lost(window: int) -> None:
    order = [item for item, _ in shuffled(((i, None) for i in range(1000)), window, np.random.default_rng(0))]
    assert sorted(order) == list(range(1000))
    # The item at place p is one of the first p + window.
    assert all(item < place + window for place, item in enumerate(order))
    if window == 1:
        assert order == list(range(1000))
    if window == 5000:
        assert np.corrcoef(order, range(1000))[0, 1] < 0.2


def test_captions_of_an_image_are_apart_from_each_other(packed: Path, captions: Captions) -> None:
    image_of = {caption: image for image, own in captions.items() for caption, _ in own}
    images = [image_of[caption] for caption in drawn(packed, captions, window=500)]
    together = sum(first == second for first, second in zip(images, images[1:], strict=False))
    assert together < 0.05 * len(images)


@pytest.mark.parametrize("kind", ["path", "http"])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.999])
def test_a_flipped_byte_is_refused_with_the_shards_address(
    packed_copy: Path, captions: Captions, place: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(packed_copy / NAMES[3], place)
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: None)
    with serving(packed_copy) as url, pytest.raises(InputError, match="has changed") as error:
        drawn(packed_copy if kind == "path" else url, captions)
    assert error.value.where.endswith(NAMES[3])


def test_a_shard_signed_with_another_count_is_refused(packed_copy: Path, captions: Captions) -> None:
    index = json.loads((packed_copy / "index.json").read_text())
    index["shards"][2]["captions"] += 1
    write_json(packed_copy / "index.json", index)
    with pytest.raises(InputError, match="holds 350 captions, index.json says 351"):
        drawn(packed_copy, captions)


def test_images_of_another_manifest_are_refused(packed: Path, captions: Captions) -> None:
    first, *_ = captions
    with pytest.raises(InputError, match=f"image '{first}' isn't in the manifest's train split"):
        drawn(packed, {image: own for image, own in captions.items() if image != first})
    with pytest.raises(InputError, match=f"image '{first}' has other captions than in the manifest"):
        drawn(packed, captions | {first: [(number, "Another ring.") for number, _ in captions[first]]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small-train-000009.tar", "index.json doesn't list it"),
        ("small-val-000000.tar", "it holds images of split 'val'"),
    ],
)
def test_addresses_that_are_not_train_shards_are_refused(packed: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_shards([f"{packed}/{NAMES[0]}", f"{packed}/{name}"])
    assert error.value.where.endswith(name)


def test_shards_of_two_recipes_are_refused(packed: Path, packed_copy: Path) -> None:
    written = json.loads((packed_copy / "recipe.json").read_text())
    written["recipe"]["regions"]["selection"]["max_boxes"] = 99
    write_json(packed_copy / "recipe.json", written)
    with pytest.raises(InputError, match="another recipe"):
        open_shards([f"{packed}/{NAMES[0]}", f"{packed_copy}/{NAMES[1]}"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://lab.example/a.tar", "addresses of kind 'ftp' can't be read"),
        ("/nowhere/a.tar", "the|not"),
        ("http://127.0.0.1:9/a.tar", "can't be fetched"),
    ],
)
def test_addresses_that_lead_nowhere_say_so(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_shards([url])


SETTINGS = {
    "dataset": "small",
    "epochs": 4,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "base": {"name": "vsrn", "dim": 64, "graph_layers": 1},
    "text": {"reads": "tokens", "word_dim": 32},
    "losses": {"triplet": {"all_negatives_epochs": 4}},
}


def trained(dataset: dict[str, Path], out: Path, **changes: object) -> tuple[list[float], dict]:
    """R@sum on the validation split after every epoch, and the record of the checkpoint."""
    rows = train_run(dataset, RunSettings(**{**SETTINGS, **changes}), out)
    curve = [row["val_rsum"] for row in rows]
    return curve, json.loads((out / "model" / "run.json").read_text())


def test_a_run_that_streams_learns_as_one_that_reads_the_store(
    dataset: dict[str, Path], packed: Path, tmp_path: Path
) -> None:
    """As well, but for chance: benchmarks/stream.json has the demo's figures."""
    stored, _ = trained(dataset, tmp_path / "stored")
    options = {"urls": [f"{packed}/{PATTERN}"], "window": 500}
    streamed, record = trained(dataset, tmp_path / "streamed", stream=options)
    assert record["settings"]["stream"]["window"] == 500
    assert streamed[-1] > 1.5 * streamed[0] and streamed[-1] > 0.75 * stored[-1]


def test_the_pages_run_streams_over_http(dataset: dict[str, Path], tmp_path: Path) -> None:
    """docs/sharing.md, "Train from addresses", on nginx as the page sets it up."""
    pack.run(dataset="demo", **dataset, settings=PackSettings(images_per_shard=150), out=tmp_path / "demo")
    (tmp_path / "nginx").mkdir()
    places = {"/srv/selfalign": str(tmp_path)}
    with servers.nginx(
        tmp_path / "nginx", lambda listen: placed(recipe("HTTP", "nginx"), places | {"listen 80": listen})
    ) as address:
        text = placed(recipe("Train from addresses", "yaml"), {"http://features.lab.example": address})
        keys = yaml.safe_load(text)["runs"]["vsrn"]
        curve, record = trained(dataset, tmp_path / "run", epochs=2, **keys)
    assert curve[1] > curve[0] and record["settings"]["stream"]["window"] == 5000
    requests = (tmp_path / "nginx" / "requests").read_text()
    for name in ("demo-train-000000.tar", "demo-train-000001.tar"):
        assert requests.count(f"GET /demo/{name} ") == 2  # once an epoch


def test_only_the_other_splits_need_be_in_the_store(dataset: dict[str, Path], packed: Path, tmp_path: Path) -> None:
    """What somebody has who fetched the validation images alone."""
    folder = tmp_path / "regions"
    shutil.copytree(dataset["regions"] / "val", folder / "val")
    stream_ = {"urls": [f"{packed}/{PATTERN}"], "window": 500}
    few = {"epochs": 1, "stream": stream_}
    curve, _ = trained({**dataset, "regions": folder}, tmp_path / "few", **few)
    whole, _ = trained(dataset, tmp_path / "whole", **few)
    assert curve == whole
    with pytest.raises(InputError, match=r"regions/train: there is no such store.*dvc pull"):
        trained({**dataset, "regions": folder}, tmp_path / "none")


def test_shards_of_another_recipe_than_the_store_are_refused(
    dataset: dict[str, Path], packed_copy: Path, tmp_path: Path
) -> None:
    written = json.loads((packed_copy / "recipe.json").read_text())["recipe"]
    written["regions"]["selection"]["nms_threshold"] = 0.9
    write_recipe(packed_copy, written)
    with pytest.raises(InputError, match=r"'selection.nms_threshold': 0.9 here, 0.3 there"):
        trained(dataset, tmp_path, stream={"urls": [f"{packed_copy}/{PATTERN}"]})


@pytest.mark.parametrize("size", [2, 64, 1499, 1500, 4000])
def test_batches_are_counted_before_they_come(dataset: dict[str, Path], packed: Path, size: int) -> None:
    for options in (None, {"urls": [f"{packed}/{PATTERN}"]}):
        settings = RunSettings(**SETTINGS | {"batch_size": size, "stream": options})
        data = RetrievalData(**dataset, split="train", streamed=options is not None)
        epochs = epochs_of(data, settings)
        sizes = [len(captions) for captions, regions in epochs(0) if len(captions) == len(regions(captions, None).mask)]
        assert len(sizes) == len(epochs) and min(sizes) > 1
        assert sum(sizes) == (1500 if size != 1499 else 1499)


def test_processes_that_train_together_have_parts_of_their_own(
    dataset: dict[str, Path], packed: Path, tmp_path: Path
) -> None:
    settings = RunSettings(**SETTINGS | {"batch_size": 100, "stream": {"urls": [f"{packed}/{PATTERN}"]}})
    fork = multiprocessing.get_context("fork")
    found = fork.Queue()
    processes = [
        fork.Process(target=_rank, args=(rank, tmp_path / "store", dataset, settings, found)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    parts = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [len(part) for part in parts] == [750, 750] and not set(parts[0]) & set(parts[1])


def _rank(rank: int, store: Path, dataset: dict[str, Path], settings: RunSettings, found: Queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    epochs = epochs_of(RetrievalData(**dataset, split="train", streamed=True), settings)
    batches = [captions.tolist() for captions, _ in epochs(0)]
    assert [len(captions) for captions in batches] == [50] * 15 and len(batches) == len(epochs)
    found.put([caption for captions in batches for caption in captions])
    torch.distributed.destroy_process_group()


class Unsteady(SimpleHTTPRequestHandler):
    """Ends the first answer for every shard half way."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.suffix != ".tar" or path.name in self.server.tried:
            super().do_GET()
            return
        self.server.tried.add(path.name)
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def log_message(self, *_: object) -> None:
        pass


class serving:
    """An HTTP server of a folder on loopback, for the length of a block; gives its address."""

    def __init__(self, folder: Path, handler: type[SimpleHTTPRequestHandler] = SimpleHTTPRequestHandler):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        self.server.tried = set()

    def __enter__(self) -> str:
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_connection_that_breaks_off_is_tried_again(
    packed: Path, captions: Captions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.time, "sleep", lambda seconds: None)
    with serving(packed, Unsteady) as url:
        assert drawn(url, captions) == drawn(packed, captions)


def test_temporary_files_are_gone_afterwards(
    packed: Path, captions: Captions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with serving(packed) as url:
        found = iter(CaptionStream(open_shards([f"{url}/{PATTERN}"])[0], captions, window=10, seed=0))
        next(found)
        found.close()
    assert list(tmp_path.iterdir()) == [] and len(os.listdir("/proc/self/fd")) <= before + 1


def test_shard_hashes_are_those_of_the_files(packed: Path) -> None:
    shards, _ = open_shards([f"{packed}/{PATTERN}"])
    assert [shard.sha256 for shard in shards] == [sha256(packed / name) for name in NAMES]
    assert [shard.captions for shard in shards] == [350, 350, 350, 350, 100]
    assert torch.utils.data.get_worker_info() is None
