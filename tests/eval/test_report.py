"""The report on small runs over drawn scenes: one page that parses, needs no network and shows what it should."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import ensemble
from eval.embed import embed
from eval.matching.correspondence import judge
from eval.matching.pairs import match_pairs
from eval.report import report
from eval.report.metrics_table import metrics_table
from eval.report.pictures import Pictures
from eval.report.recall_table import recall_rows
from eval.settings import EvaluationSettings, ReportSettings
from eval.study.settings import StudySettings
from eval.study.table import COLUMNS, write_table
from manifests.errors import InputError
from manifests.files import write_json
from manifests.grounding import read_grounding
from manifests.opening import MAX_PIXELS
from tests.eval.data_files import AttributeModel, draw_data_set, give_codebook, retrieval_data
from tests.eval.run_files import write_run

VOID = {"meta", "link", "br", "hr", "img", "input"}
RUNS = {
    "base": {"dataset": "demo", "epochs": 2, "model": {"dim": 8}},
    "self&align": {"dataset": "demo", "epochs": 2, "model": {"dim": 8}, "selfalign": {"codebook": 64}},
    "vsrn-selfalign": {"dataset": "demo", "epochs": 2, "model": {"dim": 8}},
}


SHOWN = 2  # runs in an example: the first, and the best of the others


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


STUDIES = {
    "size": {"title": "Codebook size", "vary": {"losses.lca.num_concepts": [64, 8, 4096]}},
    "speech": {"title": "Part of speech", "vary": {"parts": [["NOUN"], None]}, "changes": {"epochs": 1, "x.y": None}},
    "parts": {"title": "Parts of the method", "rows": {"base": {}, "+ LCA <b>": {"extends": "base"}}},
    "not-made": {"title": "Nothing", "vary": {"epochs": [1]}},
}
MODES = {"student": {"rsum": 300.5, "query_ms": 0.2}, "teacher": {"rsum": 333.3, "query_ms": 41.5}}


def build(folder: Path, evaluated: dict[str, dict], *, test: int = 8, **options) -> Path:
    """Draw scenes, write runs (the first sees noise, the others the truth, with a codebook) and the report; gives its
    folder. A third run has two ways to search."""
    demo = draw_data_set(folder / "data", test=test)
    data = retrieval_data(demo)
    truth = read_grounding(demo / "manifest" / "grounding.jsonl")
    model = AttributeModel(demo)
    found = embed(model, data, 64, run="r", quiet=True)
    images, captions = found.images, found.captions
    plain = match_pairs(model, data, 64, truth)
    aligned = match_pairs(give_codebook(model), data, 64, truth)
    random = np.random.default_rng(0)
    for place, name in enumerate(evaluated):
        seen, noise = aligned, 0.0
        if place == 0:
            noise = 1.0
            guessed = replace(plain.matches, region=random.integers(0, 8, len(plain.matches.region)).astype(np.int32))
            seen = replace(plain, matches=guessed, judged=judge(guessed, data, truth))
        write_run(
            folder / "runs" / name,
            images=images,
            captions=captions + noise * random.normal(size=captions.shape),
            image_of=np.asarray(data.caption_image),
            ids=[image.id for image in data.images],
            losses=("triplet",) if place == 0 else ("triplet", "cra"),
            pairs=seen,
            modes=MODES if place == 2 else None,
        )
    studies = folder / "studies"
    row = dict.fromkeys(COLUMNS) | {"seeds": 1, "rsum": 60.5, "low": 50, "high": 70, "i2t_r1": 1.5, "t2i_r1": 2.5}
    sizes = [row | {"row": 64}, row | {"row": 8, "in_use": 7}, row | {"row": 4096, "rsum": 77.7, "high": 80}]
    write_table(studies / "size" / "table.csv", sizes)
    write_table(studies / "speech" / "table.csv", [row | {"row": "NOUN"}, row | {"row": "all"}])
    gain = {"against": "base", "gain": 2.25, "gain_sd": 1.5, "teacher_rsum": 61, "reranked_rsum": 62, "chosen": "{}"}
    whole = row | {"row": "+ LCA <b>", "seeds": 3, "rsum_sd": 0.75} | gain
    write_table(studies / "parts" / "table.csv", [row | {"row": "base", "fitting": 0.5, "fitting_chance": 0.1}, whole])
    named = {"run": "base", "dataset": "demo"}
    ensembles = {"both": list(evaluated)[:2]} if len(evaluated) > 1 else {}
    for name, members in ensembles.items():
        ensemble.run(
            name=name,
            runs=members,
            runs_dir=folder / "runs",
            settings=EvaluationSettings(split="test"),
            out=folder / "ensembles" / name,
        )
    arguments = {
        "ensembles": ensembles | ({"not-made": list(evaluated)[:2]} if ensembles else {}),
        "ensembles_dir": folder / "ensembles",
        "runs": evaluated,
        "runs_dir": folder / "runs",
        "data_dir": folder / "data",
        "image_roots": {"demo": folder / "data" / "scenes" / "images"},
        "studies": {name: StudySettings(**study, **named) for name, study in STUDIES.items()},
        "studies_dir": studies,
        "benchmarks": Path(__file__).parents[2] / "benchmarks",
        "commit": "0123456789ab, changed since",
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
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert len(sources) > 50 and all(source.startswith("data:image/") for source in sources)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert len(html) < 1_000_000


def printed(written: Path, runs: dict = RUNS) -> str:
    both = {"both": ["base", "self&align"], "none": ["base", "self&align"]}
    return metrics_table(runs, written.parent / "runs", both, written.parent / "ensembles")


def test_it_names_every_run_with_its_figures(page: Page, written: Path):
    table = printed(written)
    for name in RUNS:
        assert name in page.text
        rsum = next(line for line in table.splitlines() if line.startswith(name)).split()[1]
        assert rsum in page.text
    assert "one seed" in page.text
    assert "selfalign.codebook" in page.text and "model.dim" in page.text


def test_it_draws_the_matched_regions_over_every_picture(html: str, page: Page):
    examples = html.count('<article class="example')
    assert examples == 6
    views = [attributes for tag, attributes in page.tags if attributes.get("class") == "regions"]
    assert len(views) == examples * SHOWN
    boxes = [attributes for tag, attributes in page.tags if tag == "g" and "data-words" in attributes]
    kinds = [attributes["class"].split()[1] for attributes in boxes]
    assert {"right", "wrong", "truth"} <= set(kinds)
    assert sum(tag == "rect" for tag, _ in page.tags) == 2 * len(kinds)
    assert html.count('<table class="words">') == examples * SHOWN


def test_every_coloured_word_has_a_region_in_every_picture(html: str):
    for example in re.findall(r'<article class="example.*?</article>', html, re.S):
        words = re.findall(r'data-word="(\d+)"', example)
        assert words
        for view in re.findall(r'<svg class="regions.*?</svg>', example, re.S):
            matched = " ".join(re.findall(r'class="k\d (?:right|wrong)" data-words="([\d ]+)"', view)).split()
            assert sorted(matched, key=int) == words
            boxes = re.findall(r'data-styles="[^"]+"><rect class="halo" ([^/]+)/>', view)
            assert len(set(boxes)) == len(boxes) >= 1  # words that share a region share its box


def test_modes_are_rows_and_spots(html: str, page: Page):
    rows = re.findall(r"<tr><th scope=\"row\"><i class=\"chip\".*?</tr>", html, re.S)
    student, teacher = (next(row for row in rows if f"vsrn-selfalign, {mode}" in row) for mode in MODES)
    assert "300.5" in student and "0.2" in student and "333.3" in teacher and "41.5" in teacher
    chart = next(
        attributes for tag, attributes in page.tags if "against search time" in (attributes.get("aria-label") or "")
    )
    assert "vsrn-selfalign, teacher 333.3 in 41.5 ms" in chart["aria-label"]


def test_an_ensemble_is_a_row_with_its_difference(html: str, written: Path):
    metrics = json.loads((written.parent / "ensembles" / "both" / "figures.json").read_text())
    row = next(row for row in re.findall(r'<tr><th scope="row">.*?</tr>', html, re.S) if "mean scores" in row)
    low, high = metrics["interval"]["rsum"]
    assert row.startswith('<tr><th scope="row">both<small>mean scores of 2 runs')
    assert f"<td>{metrics['rsum']:.1f}<small>{low:.0f} to {high:.0f}</small></td>" in row
    assert 'class="change"><b' in row and "not-made" not in html
    assert f"<td>{metrics['t2i_mean_rank']:.1f}</td>" in html


def test_the_best_is_marked_where_the_interval_is_above_every_other(written: Path):
    results = report.results(RUNS, written.parent / "runs")["demo"]
    base, good, other = recall_rows(results)
    assert base["best"] == good["best"] == other["best"] == set()  # two runs are equal
    base, good = recall_rows(results[:2])
    assert "rsum" in good["best"] and not base["best"]
    assert all(good["intervals"][key][0] > base["values"][key] for key in good["best"])


def test_studies_have_a_chart_of_numbers_and_bars_of_names(html: str):
    studies = html[html.index('id="studies"') : html.index('id="speed"')]
    size, speech, parts = studies.split("<article>")[1:]
    assert "Nothing" not in studies and "<code>epochs</code>&nbsp;1, <code>x.y</code>&nbsp;null" in speech
    assert [(part.count('class="chart"'), part.count('class="bar"')) for part in (size, speech, parts)] == [
        (1, 0),
        (0, 2),
        (0, 2),
    ]
    values = [re.findall(r'<th scope="row">([^<]+)</th>', part) for part in (size, speech, parts)]
    assert values == [["8", "64", "4096"], ["NOUN", "all"], ["base", "+ LCA &lt;b&gt;"]]


def test_a_study_tells_seeds_gain_and_ways_to_search(html: str):
    parts = html[html.index("<h3>Parts of the method</h3>") : html.index('id="speed"')]
    assert "&plusmn;&thinsp;0.8" in parts and "+2.2<small>&plusmn;&thinsp;1.5 over base" in parts
    assert "<td>61.0</td><td>62.0</td>" in parts and "50&thinsp;%<small>10&thinsp;%" in parts


def test_concepts_are_shown_with_their_words_and_regions(html: str):
    concepts = html[html.index('id="concepts"') : html.index('id="studies"')]
    cards = re.findall(r'<article class="card">.*?</article>', concepts, re.S)
    assert len(cards) >= 10 and '<h3><i class="chip" style="background:var(--run0)"' not in concepts
    assert sum('alt="A region of concept' in card for card in cards) >= 10


def test_speed_and_provenance_are_reported(html: str):
    speed = html[html.index('id="speed"') : html.index('id="training"')]
    assert "1,000,000" in speed and "reckoned from a pair" in speed and "measured on this machine" in speed
    assert "A search among 100,000 images takes 27.1 ms with <code>vsrn-selfalign</code>" in speed
    assert "on another machine" in html[html.index("training time") :][:200]
    assert "0123456789ab, changed since" in html and "regions " in html[html.index("On disk") :][:200]


def test_every_section_begins_with_what_to_take_away(html: str):
    sections = [part.split('">', 1) for part in html.split('<section class="sheet" id="')[1:]]
    assert [name for name, _ in sections][:2] == ["result", "pictures"] and len(sections) == 8
    takeaways = {name: re.findall(r'class="(?:takeaway|lead)">(.+?)</p>', text) for name, text in sections}
    assert all(takeaways.values())
    assert len(takeaways["studies"]) == 3 and "its interval overlaps" in takeaways["studies"][0]
    assert "NDCG@25" not in html  # these runs have none


def test_the_right_picture_is_marked_where_it_was_found(page: Page):
    tiles = [attributes["class"] or "" for tag, attributes in page.tags if tag == "li"]
    assert len(tiles) == 6 * SHOWN * 5
    assert 6 <= sum("right" in tile for tile in tiles) <= 12


def test_equal_runs_make_an_equal_page(html: str, tmp_path: Path):
    assert (build(tmp_path, RUNS) / "index.html").read_text(encoding="utf-8") == html


def test_the_figure_for_the_readme_is_a_wide_picture(written: Path):
    with Image.open(written / "overview.png") as image:
        assert image.width > 1200 and image.width > 2 * image.height
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_one_run_on_one_image_and_no_pictures_at_hand(tmp_path: Path):
    alone = {"alone": {"dataset": "demo"}}
    nowhere = {"demo": tmp_path / "nowhere"}
    runs = {"untrained": {"dataset": "demo"}, **alone, "other": {"dataset": "not-made"}}
    out = build(tmp_path, alone, test=1, runs=runs, image_roots=nowhere, settings=ReportSettings(examples=3))
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "only run" in page.text and "of 1." in page.text
    for name in ("untrained", "other"):
        assert f"{name} is left out: it has no evaluation yet (dvc repro evaluate@{name})" in page.text
    assert any("missing" in (attributes.get("class") or "") for _, attributes in page.tags)


def test_runs_of_other_images_are_refused(written: Path, tmp_path: Path):
    draw_data_set(tmp_path / "data", test=5)
    with pytest.raises(InputError, match="dvc repro evaluate@base"):
        report.run(
            runs=RUNS,
            runs_dir=written.parent / "runs",
            data_dir=tmp_path / "data",
            image_roots={"demo": tmp_path},
            ensembles={},
            ensembles_dir=tmp_path,
            studies={},
            studies_dir=tmp_path,
            benchmarks=tmp_path,
            commit=None,
            settings=ReportSettings(),
            out=tmp_path / "report",
        )


def test_the_table_for_the_terminal_lines_up(written: Path):
    lines = printed(written).splitlines()
    assert lines[0] == "demo: 8 test images, 40 captions"
    rows = [line for line in lines[:11] if line.startswith((*RUNS, "a random order"))]
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1 and all(row.endswith("%") for row in rows)
    assert next(line for line in lines if line.startswith("both ")).split()[1].replace(".", "").isdigit()
    assert max(map(len, lines[:11])) <= 80


def test_a_run_without_an_evaluation_is_left_out_and_named(written: Path, tmp_path: Path):
    more = {"new": {"dataset": "demo"}, **RUNS, "other": {"dataset": "elsewhere"}}
    table = printed(written, more)
    assert table.splitlines()[:11] == printed(written).splitlines()[:11]
    assert table.endswith(
        "new is left out: it has no evaluation yet (dvc repro evaluate@new)\n"
        "other is left out: it has no evaluation yet (dvc repro evaluate@other)\n"
        "none is left out: it has no figures yet (dvc repro ensemble@none)"
    )


def test_committed_figures_of_a_run_without_an_evaluation_are_named(tmp_path: Path):
    write_json(tmp_path / "new" / "metrics.json", {"rsum": 348.76})
    here = f"of its evaluation only {tmp_path}/new/metrics.json is here"
    assert report.unevaluated({"new": {}}, tmp_path) == [f"new is left out: {here} (dvc repro evaluate@new)"]


def test_a_picture_that_extraction_may_refuse_is_shown(tmp_path: Path):
    path = tmp_path / "large.png"
    Image.new("L", (MAX_PIXELS // 1000 + 1, 1000)).save(path)
    assert Pictures().whole(path, 160).startswith("data:image/")
