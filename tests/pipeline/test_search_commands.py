"""`selfalign index` and `selfalign search` on small trained runs over a small data set, all made by the real stages."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from demo.scenes import stage as scenes
from eval.embed import embed
from eval.matching.correspondence import match_words
from eval.search import index as indexing
from eval.search.answer import Answer
from eval.search.index import Index, Source
from eval.search.search import Searcher
from eval.search.words import RunWords
from eval.validation import validate
from extract.cards import card
from extract.stages import regions, text_features, tokens
from extract.stores.regions import RegionStore
from extract.text.settings import TextFeatureSettings
from extract.vision.one_picture import PictureReader
from manifests import manifest
from manifests.errors import InputError
from manifests.tables import Manifest
from pipeline import places
from pipeline.cli import main
from pipeline.params import Params, read_params
from pipeline.searching import page_of, region_settings, source
from tests.encoders import write_encoder
from tests.eval.test_report import Page
from tests.pipeline.project import CHECKOUT, shrink_demo
from train import train
from train.checkpoint import load_model
from train.data import RetrievalData

QUERY = "a striped red ring left of a star"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with `demo`, a run `vsrn-selfalign`, `camera` with three views and `encoded` on text features,
    and an index of each."""
    root = tmp_path_factory.mktemp("project")
    encoder = write_encoder(root / "encoder")
    params = shrink_demo(yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8")))
    params["scenes"] |= {"train": 32, "val": 6, "test": 10}
    params["ensembles"] = {}
    demo, run = params["datasets"]["demo"], params["runs"]["vsrn-selfalign"]
    demo["regions"]["detector"]["weights"] = str(CHECKOUT / demo["regions"]["detector"]["weights"])
    demo["tokens"] |= {"tokenizer": str(encoder), "min_count": 1}
    run |= {"epochs": 1, "batch_size": 16}
    base = {"name": "camera", "dim": 32, "heads": 2, "views": 3}
    params["runs"] = {
        "vsrn-selfalign": run,
        "camera": copy.deepcopy(run) | {"base": base},
        "encoded": copy.deepcopy(run) | {"text": {"reads": "text_features"}},
    }
    params["text_features"] = {"demo": {"model": str(encoder)}}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _make(read_params())
    return root


def _make(params: Params) -> None:
    data = params.dataset("demo")
    scenes.run(settings=params.scenes, out=places.SCENES)
    manifest.run(**data.source.model_dump(exclude={"pictures", "missing", "watch"}), out=places.manifest("demo"))
    listed = places.manifest("demo")
    regions.run(
        dataset="demo",
        manifest=listed,
        images=data.source.images,
        settings=data.regions,
        out=places.regions("demo"),
        cache=Path(".staging"),
    )
    tokens.run(manifest=listed, settings=data.tokens, out=places.tokens("demo"))
    text_features.run(
        dataset="demo",
        tokens=places.tokens("demo"),
        settings=params.text_feature("demo"),
        out=places.text_features("demo"),
        cache=Path(".staging"),
    )
    for name, settings in params.runs.items():
        cached = settings.text.reads == "text_features"
        train.run(
            name=name,
            manifest=listed,
            regions=places.regions("demo"),
            tokens=places.tokens("demo"),
            settings=settings,
            validate=lambda model, data: validate(model, data, 64),
            out=places.model(name),
            curves=places.curves(name),
            staging=Path(".staging"),
            text_features=places.text_features("demo") if cached else None,
        )
        own = source(params, name, "demo")
        indexing.run(source=own, out=places.index(name, "demo"), device="cpu", batch_size=16)


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SELFALIGN_THREADS", "1")


def opened(run: str) -> tuple[Index, Source]:
    return Index.open(places.index(run, "demo")), source(read_params(), run, "demo")


def ask(index: Index, own: Source, text: str, count: int = 3) -> Answer:
    return Searcher(index, own).images(text, count)


def selfalign(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("run", ["vsrn-selfalign", "camera", "encoded"])
def test_a_caption_of_the_set_finds_what_its_embedding_scores_highest(run: str):
    index, own = opened(run)
    views = index.pooled.shape[1]
    assert views == (3 if run == "camera" else 1) and len(index.rows) == 48
    caption = 17
    image = int(index.caption_image[caption])
    text = index.rows[image].captions[caption - int(np.searchsorted(index.caption_image, image))]
    query, length = index.captions[caption].astype(float), index.pooled.shape[2]
    scores = (index.pooled.astype(float) @ query[:length]).max(axis=1) + index.context @ query[length:]
    searcher = Searcher(index, own)
    answer = searcher.images(text, 5)
    assert not answer.unknown
    assert np.allclose([hit.score for hit in answer.hits], np.sort(scores)[::-1][:5], atol=1e-4)
    found = searcher.matches(answer)
    assert len(found) == 5
    for place, hit in enumerate(answer.hits):
        assert "<rect" in found.drawing(place).svg and "data-word" in found.html(place)
        width, height = found.size(place)
        assert (width, height) == (hit.image.width, hit.image.height)
        for placed in found.placed(place):
            assert (placed.box >= 0).all() and (placed.box <= [width, height, width, height]).all()


@pytest.mark.parametrize("run", ["vsrn-selfalign", "encoded"])
def test_words_match_the_regions_that_the_evaluation_matches(run: str):
    index, own = opened(run)
    stores = {"pieces": own.words.pieces, "text_features": own.text_features}
    data = RetrievalData(own.manifest, own.regions, own.tokens, "test", **stores)
    expected = match_words(load_model(own.model), data, 16, [7])
    image = data.images[int(data.caption_image[7])]
    searcher = Searcher(index, own)
    found = searcher.match([data.caption_text(7)], [searcher.picture(image.id)]).matches
    assert np.array_equal(found.region, expected.region) and np.array_equal(found.start, expected.start)
    assert np.allclose(found.cosine, expected.cosine, atol=1e-4)


@pytest.mark.parametrize("run", ["vsrn-selfalign", "camera"])
def test_a_picture_that_is_not_in_the_set_is_extracted_as_the_stage_did(run: str, tmp_path: Path):
    index, own = opened(run)
    row = 40
    original = places.SCENES / "images" / index.rows[row].path
    copied = tmp_path / "copy.bmp"  # other bytes, equal pixels
    with Image.open(original) as picture:
        picture.convert("RGB").save(copied)
    settings = region_settings(read_params(), "demo")
    found = PictureReader(settings, index.recipe["features"]).read(copied.read_bytes(), "copy.bmp")
    store = RegionStore(own.regions)
    stored = store.regions(store.row(index.rows[row].id))
    assert np.allclose(found.features.astype(float), stored.features.astype(float), rtol=2**-9, atol=2**-9)
    assert np.allclose(found.boxes, stored.boxes, atol=0.01) and found.image_size == stored.image_size
    searcher = Searcher(index, own, settings=settings)
    asked = searcher.picture(copied)
    alike = searcher.alike(asked)
    assert alike.hits[0].image.id == index.rows[row].id and alike.hits[0].score == pytest.approx(1, abs=1e-4)
    assert alike.asked is None
    mine, theirs = searcher.captions(asked), searcher.captions(searcher.picture(original.read_bytes()))
    assert theirs.asked == index.rows[row]
    matches = searcher.matches(mine, asked)
    assert all("<rect" in matches.drawing(place).svg for place in range(10))
    assert np.allclose([hit.score for hit in mine.hits], [hit.score for hit in theirs.hits], atol=1e-3)
    by_id = searcher.captions(searcher.picture(index.rows[row].id))
    assert [hit.text for hit in by_id.hits] == [hit.text for hit in theirs.hits]


def test_embeddings_of_an_index_are_the_evaluations(folder: Path):
    index, own = opened("camera")
    data = RetrievalData(own.manifest, own.regions, own.tokens, "test")
    expected = embed(load_model(own.model), data, 16, run="camera", quiet=True)
    assert np.allclose(index.pooled[38:], expected.pooled, atol=1e-5)
    assert np.allclose(index.context[38:], expected.context, atol=1e-5)
    assert np.allclose(index.captions[-expected.num_captions :], expected.captions, atol=1e-5)


def test_captions_stored_with_other_words_are_read_again(tmp_path: Path):
    index, own = opened("vsrn-selfalign")
    other = read_params().dataset("demo").tokens.model_copy(update={"min_count": 3})
    tokens.run(manifest=own.manifest, settings=other, out=tmp_path / "tokens")
    indexing.run(source=replace(own, tokens=tmp_path / "tokens"), out=tmp_path / "i", device="cpu", batch_size=16)
    assert np.allclose(Index.open(tmp_path / "i").captions, index.captions, atol=1e-5)


def test_unknown_words_are_named_and_none_known_is_an_error():
    index, own = opened("vsrn-selfalign")
    searcher = Searcher(index, own)
    answer = searcher.images("a zebra left of a star", 3)
    assert answer.unknown == ["zebra"] and len(answer.hits) == 3
    assert "zebra" not in {mark.text for place in range(3) for mark in searcher.matches(answer).marks(place)}
    with pytest.raises(InputError, match="knows none of its words: zebra, quagga"):
        searcher.images("zebra quagga")
    for nothing in ("?!", " ", ""):
        with pytest.raises(InputError, match="it has no word"):
            searcher.images(nothing)


def test_an_encoder_that_is_gone_or_another_is_named(tmp_path: Path):
    index, own = opened("encoded")
    gone = replace(own.words, encoder=TextFeatureSettings(model=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="encoder .*nowhere.*hf download"):
        ask(index, replace(own, words=gone), QUERY)
    another = write_encoder(tmp_path / "encoder", seed=5)
    words: RunWords = replace(own.words, encoder=TextFeatureSettings(model=str(another)))
    with pytest.raises(InputError, match="weights_sha256"):
        ask(index, replace(own, words=words), QUERY)


def test_what_has_changed_since_is_named_with_the_command(tmp_path: Path):
    index, own = opened("vsrn-selfalign")
    trained = replace(own, model=Path("runs/camera/model"))
    with pytest.raises(InputError, match=r"run\.weights_sha256 was .*`selfalign index vsrn-selfalign demo"):
        ask(index, trained, QUERY)
    shutil.copytree(own.regions, tmp_path / "regions")
    changed = tmp_path / "regions" / "test" / "index.json"
    card.run(changed.parent, licence="CC BY 4.0")  # no embedding depends on it
    index.require_current(replace(own, regions=tmp_path / "regions"))
    told = json.loads(changed.read_text()) | {"more": 1}
    changed.unlink()
    changed.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"regions\.test was"):
        index.require_current(replace(own, regions=tmp_path / "regions"))


def test_the_command_prints_a_table_and_writes_a_page():
    answer = selfalign("search", QUERY + " zebra", "--index", "indexes/camera-demo", "--count", "4")
    assert answer.exit_code == 0, answer.output
    assert "unknown words: zebra" in answer.output
    lines = answer.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if line.split()[:3] == ["rank", "image", "score"])
    assert [line.split()[0] for line in lines[head + 2 : head + 6]] == ["1", "2", "3", "4"]
    path = Path(re.search(r"page: (.*)", answer.stdout)[1])
    assert path.parent == Path.cwd() / "searches"
    assert re.fullmatch(r"a-striped-red-ring-left-of-a-star-zebra-[0-9a-f]{8}\.html", path.name)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert QUERY in page.text and not re.findall(r"https?://|url\((?!data:)|@import", html)
    assert html.count('<article class="example') == html.count('<svg class="regions"') == 4
    assert len(re.findall(r"<img src=\"data:", html)) == 4


def test_several_queries_have_a_page_each_and_mistakes_are_named_together():
    image = opened("camera")[0].rows[2].id
    asked = (
        "a red ring",
        "a red star",
        "quagga",
        "--image",
        image,
        "--image",
        "nobody",
        "--index",
        "indexes/camera-demo",
    )
    found = selfalign("search", *asked, "--count", "2")
    assert found.exit_code == 1
    pages = re.findall(r"page: (.*)", found.stdout)
    assert len(set(pages)) == 3 and all(Path(page).is_file() for page in pages)
    for query in ("a red ring", "a red star", image):
        assert f"\n{query}\n" in found.stdout
    assert "none of its words: quagga" in found.stderr and "nobody: neither a file" in found.stderr
    assert selfalign("search", "a", "b", "--page", "x.html").exit_code == 2


def test_no_two_pages_have_one_name(tmp_path: Path):
    queries = [
        "red ring",
        "Red ring",
        "red  ring",
        "red-ring",
        "красное кольцо",
        "赤い輪",
        "🔴",
        "?",
        "x" * 300,
        "x" * 299,
        "\0",
    ]
    for name in ("a/photo.jpg", "b/photo.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        queries.append(str(tmp_path / name))
    pages = [page_of(query, kind, where) for query in queries for kind in ("captions", "alike") for where in ("i", "j")]
    names = [page.name.lower() for page in pages]
    assert len(set(names)) == len(names) and max(len(name.encode()) for name in names) < 140
    assert {page.parent for page in pages} == {places.SEARCHES}
    assert names[16].startswith("красное-кольцо-") and names[20].startswith("赤い輪-")
    assert page_of("a", "images", "i") == page_of("a", "images", "i")


def test_mistakes_are_one_line(tmp_path: Path):
    assert "there are several: indexes/camera-demo" in selfalign("search", QUERY).output
    assert "give a TEXT or --image" in selfalign("search").output
    assert (
        "neither a file nor the id" in selfalign("search", "--image", "nobody", "--index", "indexes/camera-demo").output
    )
    assert "runs has no 'camra' (did you mean 'camera'?)" in selfalign("index", "camra", "demo").output
    assert "there is no index" in selfalign("search", QUERY, "--index", str(tmp_path)).output
    (tmp_path / "text.png").write_text("no picture")
    broken = selfalign("search", "--image", str(tmp_path / "text.png"), "--index", "indexes/camera-demo")
    assert broken.exit_code == 1 and "the picture can't be read" in broken.output


def test_an_index_of_some_splits_and_by_the_command(tmp_path: Path):
    made = selfalign("index", "camera", "demo", "--split", "test", "--out", str(tmp_path / "i"))
    assert made.exit_code == 0 and "10 images and 50 captions of demo, as camera sees them" in made.output
    index = Index.open(tmp_path / "i")
    assert [row.id for row in index.rows] == Manifest.open(places.manifest("demo")).ids[-10:]
    found = selfalign("search", "--image", index.rows[3].id, "--images", "--index", str(tmp_path / "i"))
    assert found.exit_code == 0 and re.search(rf"^ +1  {re.escape(index.rows[3].id)} +1\.0000", found.stdout, re.M)


def test_an_approximate_index_says_what_it_finds(tmp_path: Path):
    pytest.importorskip("faiss", reason="FAISS isn't installed")
    made = selfalign("index", "camera", "demo", "--kind", "hnsw", "--out", str(tmp_path / "i"))
    assert re.search(r"hnsw finds [\d.]+% of the 10 best images and [\d.]+% of the 10 best captions", made.output)
    found = selfalign("search", QUERY, "--index", str(tmp_path / "i"))
    exact = selfalign("search", QUERY, "--index", "indexes/camera-demo")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[2].split()[:2] == exact.stdout.splitlines()[2].split()[:2]


def test_without_a_run_a_picture_finds_those_of_the_nearest_mean_of_regions(folder: Path) -> None:
    store, listed = RegionStore(places.regions("demo")), Manifest.open(places.manifest("demo"))
    means = np.stack([store.regions(row).features.astype(np.float32).mean(0) for row in range(len(store))])
    means -= means[listed.rows_in("train")].mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    image = listed.images[5]
    expected = [listed.images[row].id for row in np.argsort(-(means @ means[5]), kind="stable")[:4]]
    path = read_params().image_roots["demo"] / image.path
    for asked in (image.id, str(path)):
        done = selfalign("search", "--dataset", "demo", "--image", asked, "--count", "4")
        assert done.exit_code == 0, done.output
        assert re.findall(r"^ +\d+  (\S+)", done.output, re.MULTILINE) == expected
    resized = folder / "other.png"
    Image.open(path).resize((150, 170)).save(resized)
    done = selfalign("search", "--dataset", "demo", "--image", str(resized))
    assert re.search(rf"^ +1  {image.id} ", done.output, re.MULTILINE)
    (written,) = (folder / "searches").glob("other-*.html")
    page = Page(written.read_text(encoding="utf-8"))
    assert "10 of 48 images of demo, by the mean of their regions" in page.text


def test_a_search_without_a_run_that_cannot_be(folder: Path) -> None:
    asked = ("search", "--dataset", "demo")
    assert "neither a file nor the id of an image" in selfalign(*asked, "--image", "nobody").output
    assert "datasets has no 'dem'" in selfalign("search", "--dataset", "dem", "--image", "000001").output
    assert selfalign(*asked, "a star").exit_code == 2
    assert selfalign(*asked, "--image", "000001", "--index", "indexes/encoded-demo").exit_code == 2
