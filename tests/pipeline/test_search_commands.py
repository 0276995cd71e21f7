"""`selfalign index` and `selfalign search` on small trained runs over a small data set, all made by the real stages."""

import io
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import selfalign as selfalign_package
from eval.embed import embed
from eval.matching.correspondence import match_words
from eval.search import index as indexing
from eval.search.answer import Answer
from eval.search.index import TRIED, Index, Source
from eval.search.search import Searcher
from eval.search.words import RunWords
from extract.cards import card
from extract.stages import tokens
from extract.stores.regions import Regions, RegionStore
from extract.text.settings import TextFeatureSettings
from extract.vision.one_picture import PictureReader
from manifests.errors import InputError
from manifests.tables import Manifest, write_manifest
from pipeline import places
from pipeline.cli import main
from pipeline.params import read_params
from pipeline.searching import page_of, region_settings, source
from pipeline.serving import schema
from pipeline.serving.engine import ServedIndex
from pipeline.serving.serve import open_indexes
from tests.encoders import write_encoder
from tests.eval.test_report import Page
from tests.pipeline.project import CHECKOUT
from tests.pipeline.searched import make_searched
from tests.pipeline.servers import Server, search_server
from train.checkpoint import load_model
from train.data import RetrievalData

QUERY = "a striped red ring left of a star"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_searched(tmp_path_factory.mktemp("project"))


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
    # Without a noun, adjective or verb that it knows, every longer word is worth drawing: but no unknown one.
    marked = searcher.matches(searcher.images("above zebra", 3)).highlights(0)
    assert [mark.text for mark in marked] == ["above"]
    with pytest.raises(InputError, match="knows none of its words: zebra, quagga"):
        searcher.images("zebra quagga")
    for nothing in ("?!", " ", ""):
        with pytest.raises(InputError, match="it has no word"):
            searcher.images(nothing)


@pytest.mark.parametrize("run", ["vsrn-selfalign", "camera", "encoded"])
def test_a_text_fits_that_scores_more_than_captions_do_with_other_images(run: str):
    index, own = opened(run)
    seen = np.concatenate([index.pooled, np.repeat(index.context[:, None], index.pooled.shape[1], 1)], axis=2)
    scores = np.einsum("cd,ikd->cik", index.captions, seen).max(axis=2)
    pick = np.random.default_rng(0).permutation(len(scores))[:TRIED]
    best = np.quantile(scores.max(axis=1)[pick], 0.1)
    scores[np.arange(len(scores)), index.caption_image] = -np.inf
    least = min(best, np.median(scores.max(axis=1)[pick]))
    assert index.fitting == pytest.approx(least, abs=1e-5)
    searcher = Searcher(index, own)
    answers = [searcher.images(index.manifest.texts(row, row + 1)[0], 1) for row in range(60)]
    assert {answer.fits for answer in answers} == {True, False}
    assert all(answer.fits == (answer.hits[0].score >= index.fitting) for answer in answers)


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
    with pytest.raises(
        InputError, match=r"the run vsrn-selfalign was trained again since .*`selfalign index vsrn-selfalign demo`"
    ):
        ask(index, trained, QUERY)
    moved = tmp_path / "manifest"
    write_manifest(moved, list(Manifest.open(own.manifest).captioned)[1:])
    with pytest.raises(
        InputError, match=r"again and the data set's pictures or captions have changed since it was made"
    ):
        index.require_current(replace(trained, manifest=moved))
    part = replace(index, recipe=index.recipe | {"splits": ["test"]}, folder=tmp_path / "i")
    with pytest.raises(InputError, match=rf"`selfalign index vsrn-selfalign demo --split test --out {tmp_path}/i`"):
        part.require_current(replace(own, manifest=moved))
    shutil.copytree(own.regions, tmp_path / "regions")
    changed = tmp_path / "regions" / "test" / "index.json"
    card.run(changed.parent, licence="CC BY 4.0")  # no embedding depends on it
    index.require_current(replace(own, regions=tmp_path / "regions"))
    facts = json.loads(changed.read_text()) | {"more": 1}
    changed.unlink()
    changed.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"the regions have changed \(test\) since"):
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
    assert broken.exit_code == 1 and "it can't be read: not a picture" in broken.output
    assert broken.output.count("picture") == 1


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


def test_the_examples_of_the_python_page_run(capsys: pytest.CaptureFixture[str]):
    page = (CHECKOUT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), scope)
    said = capsys.readouterr().out
    assert len(examples) >= 9 and "none of its words: quagga" in said
    assert said.count("rank  image") == 3 and "(2, 20)" in said
    used = set(re.findall(r"selfalign\.(\w+)", "".join(examples)))
    assert used == set(selfalign_package.__all__)


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]):
    notebook = json.loads((CHECKOUT / "notebooks" / "first-steps.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, Any] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [] and cell["execution_count"] is None
                exec(compile("".join(cell["source"]), f"notebook, cell {number}", "exec"), scope)
        drawn = [len(axes.patches) for axes in scope["figure"].axes]
        scope["plt"].close("all")
    assert len(drawn) == 4 and min(drawn) >= 3
    assert capsys.readouterr().out.count("rank  image") == 3 and scope["scores"].shape == (3, 8)


@pytest.mark.parametrize("run", ["vsrn-selfalign", "camera", "encoded"])
def test_embeddings_in_python_are_those_of_the_index(run: str):
    index, own = opened(run)
    model, store = selfalign_package.load_model(run), selfalign_package.open_store(own.regions)
    images = selfalign_package.embed_images(model, store)
    expected = np.concatenate([index.pooled, np.repeat(index.context[:, None], index.pooled.shape[1], axis=1)], axis=2)
    assert np.allclose(images, expected.squeeze(1) if run != "camera" else expected, atol=1e-5)
    texts = index.manifest.texts(0, 70)
    assert np.allclose(selfalign_package.embed_captions(model, texts), index.captions[:70], atol=1e-3)
    assert model.dataset == "demo" and model.run == run


def test_mistakes_in_python_say_what_to_do(tmp_path: Path):
    index = selfalign_package.open_index("camera-demo")
    model = selfalign_package.load_model("camera")
    without = Regions(np.zeros((0, 8), np.float16), np.zeros((0, 4), np.float32), (9, 9))
    for mistake, message in (
        (lambda: selfalign_package.load_model("camra"), "runs has no 'camra' (did you mean 'camera'?)"),
        (lambda: selfalign_package.open_index("nobody"), "there is no index"),
        (lambda: selfalign_package.open_store(tmp_path), "there is no such store"),
        (lambda: selfalign_package.open_manifest("nobody"), "there is no manifest"),
        (lambda: selfalign_package.search(index), "it takes a text or a picture"),
        (lambda: selfalign_package.search(index, picture="nobody"), "neither a file nor the id"),
        (lambda: selfalign_package.search(index, picture="000001", find="all"), "there is no 'all' to find"),
        (lambda: selfalign_package.embed_captions(model, "a star"), "it is one text"),
        (lambda: selfalign_package.embed_captions(model, ["a star", "?"]), "it has no word"),
        (lambda: selfalign_package.embed_images(model, [without]), "image 0: it has no regions"),
        (lambda: selfalign_package.extract_regions([tmp_path / "no.png"], "demo"), "it can't be read"),
        (lambda: selfalign_package.extract_regions([], "dem"), "datasets has no 'dem'"),
    ):
        with pytest.raises(selfalign_package.InputError) as error:
            mistake()
        assert message in str(error.value)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        served = open_indexes(read_params(), [Path("vsrn-selfalign-demo"), Path("indexes/camera-demo")], "cpu")
        with search_server(served) as address:
            yield Server(address)


def test_the_server_answers_a_text_as_the_command_does(server: Server):
    health = schema.Health.model_validate(server.get("/api/health"))
    assert [one.name for one in health.indexes] == ["vsrn-selfalign-demo", "camera-demo"]
    assert {one.images for one in health.indexes} == {48} and health.indexes[0].takes_pictures
    for name in ("vsrn-selfalign", "camera"):
        found = schema.SearchAnswer.model_validate(
            server.get("/api/search", index=f"{name}-demo", text=QUERY + " zebra", count=5)
        )
        expected = ask(*opened(name), QUERY + " zebra", 5)
        assert [hit.id for hit in found.hits] == [hit.image.id for hit in expected.hits]
        assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in expected.hits], abs=1e-6)
        assert found.unknown == ["zebra"] and found.kind == "images" and found.row is None
        rows = [hit.row for hit in found.hits]
        answer = server.get("/api/regions", index=f"{name}-demo", text=QUERY + " zebra", row=rows)
        matches = schema.Matches.model_validate(answer).matches
        assert [match.row for match in matches] == rows
        for match in matches:
            words = [match.text[word.start : word.end] for word in match.words]
            assert words == (QUERY + " zebra").split() and [word.known for word in match.words] == [True] * 8 + [False]
            drawn = sorted(number for region in match.regions for number in region.words)
            assert drawn == [place for place, word in enumerate(match.words) if word.colour is not None]
            assert 8 not in drawn and len(drawn) > 3
            for x1, y1, x2, y2 in (region.box for region in match.regions):
                assert 0 <= x1 < x2 <= match.width and 0 <= y1 < y2 <= match.height


def test_words_that_nobody_knows_find_nothing(server: Server):
    found = server.get("/api/search", text="quagga zeb")
    assert (found["hits"], found["unknown"]) == ([], ["quagga", "zeb"])


def test_the_server_answers_a_picture(server: Server, tmp_path: Path):
    index, _ = opened("vsrn-selfalign")
    row = index.rows[40]
    original = places.SCENES / "images" / row.path
    alike = server.get("/api/picture", id=row.id, find="alike", count=3)
    assert alike["row"] == 40 and alike["hits"][0]["id"] == row.id and alike["hits"][0]["score"] == pytest.approx(1)
    assert server.post("/api/picture", original.read_bytes(), find="alike", count=3)["row"] == 40
    with Image.open(original) as picture:
        picture.convert("RGB").save(tmp_path / "copy.bmp")
    found = server.post("/api/picture", (tmp_path / "copy.bmp").read_bytes(), count=4)
    expected = server.get("/api/picture", id=row.id, count=4)
    assert found["row"] is None and found["kind"] == "captions"
    assert [hit["caption"] for hit in found["hits"]] == [hit["caption"] for hit in expected["hits"]]
    assert len(found["matches"]) == 4 and all(match["regions"] for match in found["matches"])
    assert [match["text"] for match in found["matches"]] == [hit["caption"] for hit in found["hits"]]


def test_the_server_sends_pictures_and_the_page(server: Server):
    hit = server.get("/api/search", text=QUERY, count=1)["hits"][0]
    status, headers, content = server.raw("GET", hit["picture"] + "&side=100")
    assert status == 200 and headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(content)) as picture:
        assert max(picture.size) == 160
    shown = opened("vsrn-selfalign")[0].manifest.images[hit["row"]]
    assert hit["file"] == shown.path  # the whole path is told on this machine alone
    with Image.open(io.BytesIO(server.raw("GET", hit["picture"] + "&side=1280")[2])) as picture:
        assert picture.size == (shown.width, shown.height)
    assert server.raw("GET", hit["picture"] + "&side=100", headers={"If-None-Match": headers["ETag"]})[0] == 304
    for path, kind in (("/", "text/html"), ("/serve.js", "text/javascript"), ("/serve.css", "text/css")):
        status, headers, content = server.raw("GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert not re.findall(rb"https?://(?!www\.w3\.org)", content)


@pytest.mark.parametrize(
    ("status", "path", "message"),
    [
        (422, "/api/search?text=%3F!", "it has no word"),
        (422, "/api/search", "text: Field required"),
        (422, f"/api/search?text={'x' * 1001}", "text: String should have at most 1000 characters"),
        (422, "/api/search?text=a&count=101", "count: Input should be less than or equal to 100"),
        (404, "/api/search?text=star&index=nobody", "no index 'nobody' is served"),
        (422, "/api/picture?id=nobody", "there is no image 'nobody'"),
        (422, "/api/picture?id=/etc/passwd", "there is no image '/etc/passwd'"),
        (422, "/api/regions?text=star&row=48", "there is no row 48"),
        (422, "/api/regions?text=star&row=-1", "row.0: Input should be greater than or equal to 0"),
        (422, "/api/regions?text=star", "row: Field required"),
        (404, "/pictures/camera-demo/48", "there is no row 48"),
        (404, "/pictures/camera-demo/-1", "there is no row -1"),
        (422, "/pictures/camera-demo/1?side=1281", "side: Input should be less than or equal to 1280"),
        (404, "/serve.py", "Not Found"),
        (404, "/../params.yaml", "Not Found"),
    ],
)
def test_the_server_says_what_is_wrong(server: Server, status: int, path: str, message: str):
    found, headers, content = server.raw("GET", path)
    refusal = schema.Refusal.model_validate_json(content)
    assert (found, headers["X-Content-Type-Options"]) == (status, "nosniff")
    assert message in refusal.error and refusal.where and refusal.fix


def test_an_index_whose_first_caption_has_no_known_word_is_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ServedIndex, "_examples", lambda index: ["zebra quagga"])
    (served,) = open_indexes(read_params(), [Path("camera-demo")], "cpu")
    assert served.images("zebra quagga", 3).hits == [] and len(served.images(QUERY, 3).hits) == 3


def test_the_server_bounds_what_it_reads_and_whom_it_answers(server: Server):
    for body, status, message in (
        (b"", 422, "there is no picture"),
        (b"no picture", 422, "it can't be read: not a picture"),
    ):
        found, _, content = server.raw("POST", "/api/picture", body)
        assert found == status and message in json.loads(content)["error"]
    # Only the header is sent: a body that claims to be too large is never read.
    length = {"Content-Length": str(schema.MOST_BYTES + 1)}
    found, _, content = server.raw("POST", "/api/picture", headers=length)
    assert found == 413 and "more than 33,554,432 bytes" in json.loads(content)["error"]
    found, _, content = server.raw("GET", "/api/health", headers={"Host": "elsewhere.example"})
    assert found == 403 and "host 'elsewhere.example'" in json.loads(content)["error"]
    assert server.raw("GET", "/api/health", headers={"Host": "127.0.0.2"})[0] == 200
    stated = server.get("/api/openapi.json")["paths"]
    assert {"/api/health", "/api/search", "/api/regions", "/api/picture"} <= set(stated)
    assert stated["/api/search"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]


def test_many_at_once_get_their_own_answers(server: Server):
    texts = [
        f"a {size} {colour} {shape}"
        for size in ("big", "tiny")
        for colour in ("red", "blue")
        for shape in ("star", "ring")
    ]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: server.get("/api/search", text=text, count=3), texts))
    alone = [server.get("/api/search", text=text, count=3) for text in texts]
    assert [found["query"] for found in together] == texts
    assert [found["hits"] for found in together] == [found["hits"] for found in alone]


def test_a_server_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "pipeline.serving.app", raising=False)
    monkeypatch.delattr("pipeline.serving.app", raising=False)
    found = selfalign("serve", "camera-demo", "--port", "0")
    assert found.exit_code == 1 and "fastapi isn't installed" in found.output and "selfalign[serve]" in found.output


def test_what_can_not_be_served_is_one_line(tmp_path: Path):
    busy = socket.create_server(("127.0.0.1", 0))
    with busy:
        port = str(busy.getsockname()[1])
        found = selfalign("serve", "camera-demo", "--port", port)
    assert (
        found.exit_code == 1 and f"127.0.0.1, port {port}: can't listen there (Address already in use)" in found.output
    )
    missing = selfalign("serve", "camera-dem", str(tmp_path / "i"), "--port", "0")
    assert missing.exit_code == 1 and missing.output.count("there is no index") == 2
    assert missing.output.count("choose one of camera-demo, encoded-demo, vsrn-selfalign-demo") == 2
    twice = selfalign("serve", "camera-demo", "indexes/camera-demo", "--port", "0")
    assert "two indexes have the name camera-demo" in twice.output


def test_an_evaluation_says_what_came_out_beside_chance_and_what_comes_next():
    first, again = (selfalign("evaluate", "camera") for _ in range(2))  # the second time nothing is to be done
    figures = json.loads((places.evaluation("camera") / "figures.json").read_text(encoding="utf-8"))
    for done in (first, again):
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()[-5:]
        assert lines[0] == "camera: 10 test images, 50 captions of demo"
        assert lines[1] == f"  R@sum {figures['rsum']:.1f} of 600; a random order has {figures['chance']['rsum']:.1f}"
        assert f"captions find their image first: {figures['t2i_r1']:.0f} % (by chance 10)" in done.stdout
        assert lines[-1] == "next: selfalign metrics; selfalign index camera demo; selfalign serve"
