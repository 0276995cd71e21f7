"""The report on small runs over drawn scenes: one page that parses, needs no network and shows what it should."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import report
from eval.correspondence import Matches, accuracy, match_words
from eval.embed import embed
from eval.settings import ReportSettings
from manifests.errors import InputError
from manifests.grounding import read_grounding
from tests.eval.data_files import AttributeModel, draw_data_set, retrieval_data
from tests.eval.run_files import write_run

VOID = {"meta", "link", "br", "hr", "img", "input"}
RUNS = {
    "base": {"dataset": "demo", "epochs": 2, "model": {"dim": 8}},
    "self&align": {"dataset": "demo", "epochs": 2, "model": {"dim": 8}, "selfalign": {"codebook": 64}},
}


class Page(HTMLParser):
    """Collects the tags of a page and fails on one that is closed in the wrong order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def build(folder: Path, runs: dict[str, dict], *, test: int = 8, **options) -> Path:
    """Draw scenes, write runs (the first sees noise, the others the truth) and the report; gives its folder."""
    demo = draw_data_set(folder / "data", test=test)
    data = retrieval_data(demo)
    truth = read_grounding(demo / "manifest" / "grounding.jsonl")
    model = AttributeModel(demo)
    found = embed(model, data, 64, run="r", quiet=True)
    images, captions = found.images, found.captions
    matches = match_words(model, data, 64)
    random = np.random.default_rng(0)
    for place, name in enumerate(runs):
        seen: Matches = matches
        noise = 0.0
        if place == 0:
            noise, seen = 1.0, replace(matches, region=random.integers(0, 8, len(matches.region)))
        write_run(
            folder / "runs" / name,
            images=images,
            captions=captions + noise * random.normal(size=captions.shape),
            image_of=np.asarray(data.caption_image),
            ids=[image.id for image in data.images],
            losses=("triplet",) if place == 0 else ("triplet", "cra"),
            matches=seen,
            correspondence=accuracy(seen, data, truth),
        )
    arguments = {
        "runs": runs,
        "runs_dir": folder / "runs",
        "data_dir": folder / "data",
        "image_roots": {"demo": folder / "data" / "scenes" / "images"},
        "settings": ReportSettings(),
        "out": folder / "report",
    }
    report.run(**(arguments | options))
    return folder / "report"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report"), RUNS)


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_whole_and_needs_no_network(html: str, page: Page):
    assert not re.findall(r"https?://|url\((?!data:)|@import", html)
    assert not [tag for tag, attributes in page.tags if "src" in attributes]
    assert len(html) < 1_000_000


def test_it_names_every_run_with_its_figures(page: Page, written: Path):
    table = report.metrics_table(RUNS, written.parent / "runs")
    for name in RUNS:
        assert name in page.text
        rsum = next(line for line in table.splitlines() if line.startswith(name)).split()[7]
        assert rsum in page.text
    assert "one seed" in page.text
    assert "selfalign.codebook" in page.text and "model.dim" in page.text


def test_it_draws_the_matched_regions_over_every_picture(html: str, page: Page):
    examples = html.count('<article class="example')
    assert examples == 6
    views = [attributes for tag, attributes in page.tags if attributes.get("class") == "regions"]
    assert len(views) == examples * len(RUNS)
    boxes = [attributes for tag, attributes in page.tags if tag == "g" and "data-words" in attributes]
    kinds = [attributes["class"].split()[1] for attributes in boxes]
    assert {"right", "wrong", "truth"} <= set(kinds)
    assert sum(tag == "rect" for tag, _ in page.tags) == 2 * len(kinds)


def test_every_coloured_word_has_a_region_in_every_picture(html: str):
    for example in re.findall(r"<article.*?</article>", html, re.S):
        words = re.findall(r'data-word="(\d+)"', example)
        assert words
        for view in re.findall(r"<svg.*?</svg>", example, re.S):
            matched = " ".join(re.findall(r'class="k\d (?:right|wrong)" data-words="([\d ]+)"', view)).split()
            assert sorted(matched, key=int) == words


def test_each_picture_is_embedded_once_and_each_used_one_is_there(html: str, page: Page):
    embedded = re.findall(r"^\.(p\d+)\{background-image:url\((data:image/\w+;base64,\S+)\)\}$", html, re.M)
    assert len({uri for _, uri in embedded}) == len(embedded) <= 8
    worn = {name for _, attributes in page.tags for name in (attributes.get("class") or "").split()}
    assert {name for name in worn if re.fullmatch(r"p\d+", name)} == {name for name, _ in embedded}


def test_the_right_picture_is_marked_where_it_was_found(page: Page):
    tiles = [attributes["class"] or "" for tag, attributes in page.tags if tag == "li"]
    assert len(tiles) == 6 * 2 * 5
    assert 6 <= sum(tile.endswith(" right") for tile in tiles) <= 12


def test_equal_runs_make_an_equal_page(html: str, tmp_path: Path):
    assert (build(tmp_path, RUNS) / "index.html").read_text(encoding="utf-8") == html


def test_the_figure_for_the_readme_is_a_wide_picture(written: Path):
    with Image.open(written / "overview.png") as image:
        assert image.width > 1200 and image.width > 2 * image.height
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_one_run_on_one_image_and_no_pictures_at_hand(tmp_path: Path):
    runs = {"alone": {"dataset": "demo"}}
    out = build(tmp_path, runs, test=1, image_roots={"demo": tmp_path / "nowhere"}, settings=ReportSettings(examples=3))
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "only run" in page.text
    assert any("missing" in (attributes.get("class") or "") for _, attributes in page.tags)


def test_runs_of_other_images_are_refused(written: Path, tmp_path: Path):
    draw_data_set(tmp_path / "data", test=5)
    with pytest.raises(InputError, match="dvc repro evaluate@base"):
        report.run(
            runs=RUNS,
            runs_dir=written.parent / "runs",
            data_dir=tmp_path / "data",
            image_roots={"demo": tmp_path},
            settings=ReportSettings(),
            out=tmp_path / "report",
        )


def test_the_table_for_the_terminal_lines_up(written: Path):
    lines = report.metrics_table(RUNS, written.parent / "runs").splitlines()
    assert lines[0] == "demo: 8 test images, 40 captions"
    rows = [line for line in lines[:9] if line.startswith(("run ", "base ", "self&align ", "chance "))]
    assert len({len(row) for row in rows}) == 1
    assert all(row.endswith("%") for row in rows[1:])
