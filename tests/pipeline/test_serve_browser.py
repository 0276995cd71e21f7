"""The search page in a real browser, served by the command, as somebody would use it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.pipeline.project import CHECKOUT
from tests.pipeline.searched import make_searched
from tests.pipeline.test_report_browser import browser, click, elements, require_no_sideways

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.slow
SIZES = {"phone": (390, 800), "desktop": (1400, 1000)}
SECONDS = 30
TEXT = "a striped red ring left of a zebra"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_searched(tmp_path_factory.mktemp("project"))


@contextmanager
def served(project: Path, *indexes: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Where `selfalign serve` serves indexes, all by default, and its process; it is killed where it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SELFALIGN_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", "serve", *indexes, "--port", "0"]
    with open(project / "serve.log", "w") as log:
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"(http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)", line):
                break
        else:
            pytest.fail("".join(said) + (project / "serve.log").read_text())
        assert [line.split(" images of demo, as ")[0] for line in said[:-1]] == ["48"] * (len(indexes) or 3)
        yield found[1], process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where it is served; afterwards it is ended as a user ends it."""
    with served(project) as (found, process):
        yield found
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, rest) == (0, "stopped\n")


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The page at first. Afterwards the console must be empty, and nothing may be wider than the screen."""
    width, height = SIZES[request.param]
    browser.set_window_size(max(width, 500), height)
    if request.param == "phone":
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    else:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(address)
    until(browser, lambda: "images and" in text(browser, "status"))
    require_no_sideways(browser, "at first")
    yield browser
    require_no_sideways(browser, "at last")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def until(browser: Any, holds: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(lambda _: holds())


def text(browser: Any, id: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", id)


def drawn(browser: Any) -> int:
    """How many of the hits have regions."""
    return len(elements(browser, "#hits svg"))


def test_it_answers_while_one_types(page: Any, browser: Any) -> None:
    query = elements(browser, "#query")[0]
    assert browser.switch_to.active_element == query
    query.send_keys(TEXT)  # no Enter
    until(browser, lambda: "zebra" in text(browser, "status") and drawn(browser) == 12)
    assert "unknown words, without boxes: zebra" in text(browser, "status")
    assert text(browser, "words") == TEXT
    assert [word.text for word in elements(browser, "#words .unknown")] == ["zebra"]
    loaded = "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    assert min(browser.execute_script(loaded)) > 0
    scores = [float(one.text) for one in elements(browser, ".tag [title=score]")]
    assert scores == sorted(scores, reverse=True) and len({one.text for one in elements(browser, ".tag .id")}) == 12
    assert "q=a+striped" in browser.current_url
    click(browser, elements(browser, "#legend summary")[0])
    assert (
        "How alike the text and the picture are: more is better" in text(browser, "score-legend")
        and elements(browser, "#legend dt")[0].is_displayed()
    )

    word = elements(browser, "#words .word")[1]
    click(browser, word)
    number = word.text
    assert word.get_attribute("aria-pressed") == "true"
    opacity = "return [...document.querySelectorAll('#hits g')].filter(g => getComputedStyle(g).opacity === '1').length"
    assert number == "red" and browser.execute_script(opacity) == 12
    click(browser, word)
    assert browser.execute_script(opacity) > 12

    browser.refresh()  # the address holds the query
    until(browser, lambda: drawn(browser) == 12)


def test_more_are_shown_and_one_is_searched_with(page: Any, browser: Any) -> None:
    elements(browser, "#query")[0].send_keys("a red ring")
    until(browser, lambda: len(elements(browser, ".hit")) == 12)
    click(browser, elements(browser, "#more")[0])
    until(browser, lambda: len(elements(browser, ".hit")) == 24)
    first = elements(browser, ".tag .id")[0].text
    click(browser, elements(browser, ".tools button")[0])
    until(browser, lambda: elements(browser, "#asked svg") and elements(browser, "#caption-list li"))
    shown = [one.text for one in elements(browser, ".tag .id")]
    assert len(shown) == 12 and first not in shown and elements(browser, ".tag b")[0].text == "1"
    assert len(elements(browser, "#caption-list li")) == 10
    assert "How alike two pictures are: 1 is the same. Beside a caption" in text(browser, "score-legend")
    click(browser, elements(browser, "#caption-list .word")[0])
    assert elements(browser, "#asked .looking g.on")


def test_a_picture_is_searched_with(page: Any, browser: Any, project: Path, tmp_path: Path) -> None:
    original = project / "data/scenes/images/000007.png"
    with Image.open(original) as picture:
        picture.convert("RGB").save(tmp_path / "mine.jpg", quality=95)
    # Dropped, as the browser tells it of a file.
    drop = """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "mine.jpg", { type: "image/jpeg" }));
        document.body.dispatchEvent(new DragEvent("dragenter", { dataTransfer: data, bubbles: true }));
        const shown = !document.getElementById("drop").hidden;
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        return shown && document.getElementById("drop").hidden;
    """
    import base64

    assert browser.execute_script(drop, base64.b64encode((tmp_path / "mine.jpg").read_bytes()).decode())
    until(browser, lambda: elements(browser, "#asked svg") and elements(browser, ".hit"))
    assert elements(browser, ".tag .id")[0].text == "000007"

    elements(browser, "#file")[0].send_keys(str(original))
    until(browser, lambda: "1.0000" in text(browser, "hits"))


def test_what_is_wrong_is_said_and_mended(page: Any, browser: Any, tmp_path: Path) -> None:
    query = elements(browser, "#query")[0]
    for typed, message in (
        ("quagga zeb", "knows none of these words: quagga, zeb"),
        ("?!", "“?!” has no word"),
        (" ", "images and"),
    ):
        query.clear()
        query.send_keys(typed)
        until(browser, lambda message=message: message in text(browser, "status"))
        assert not elements(browser, ".hit")
    picture = tmp_path / "no.png"
    picture.write_bytes(b"no picture")
    elements(browser, "#file")[0].send_keys(str(picture))
    until(browser, lambda: "no.png: it can't be read: not a picture" in text(browser, "error"))
    assert len(browser.get_log("browser")) == 1  # Chromium itself notes the answer of status 422
    query.clear()
    query.send_keys("a <b> star")
    until(browser, lambda: drawn(browser) == 12)
    assert text(browser, "words") == "a <b> star" and not elements(browser, "#words b")
    assert not elements(browser, "#error")[0].is_displayed()


def test_another_index_is_chosen_and_the_keyboard_reaches_all(page: Any, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    chosen = Select(elements(browser, "#index")[0])
    assert [option.text for option in chosen.options] == ["camera-demo", "encoded-demo", "vsrn-selfalign-demo"]
    elements(browser, "#query")[0].send_keys("a star", Keys.ENTER)
    until(browser, lambda: "as camera sees them" in text(browser, "status"))
    chosen.select_by_visible_text("encoded-demo")
    until(browser, lambda: "as encoded sees them" in text(browser, "status") and drawn(browser) == 12)
    assert "index=encoded-demo" in browser.current_url
    elements(browser, "#query")[0].send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "choose"
    word = elements(browser, "#words .word")[0]
    word.send_keys(Keys.ENTER)
    assert word.get_attribute("aria-pressed") == "true"


def test_regions_that_come_late_leave_the_hits_as_they_are(page: Any, browser: Any) -> None:
    browser.execute_script("""
        const plain = fetch;
        const held = new Promise((go) => (window.release = go));
        window.fetch = async (url, ...more) => {
            if (`${url}`.startsWith("/api/regions")) await held;
            return plain(url, ...more);
        };
    """)
    elements(browser, "#query")[0].send_keys("a red ring")
    until(browser, lambda: len(elements(browser, ".hit")) == 12)
    later = "const [done] = arguments; setTimeout(() => done(document.getElementById('status').textContent), 800)"
    assert re.search(r"12 of 48 images .* ms$", browser.execute_async_script(later)) and drawn(browser) == 0
    assert not elements(browser, ".busy")
    browser.execute_script("release()")
    until(browser, lambda: drawn(browser) == 12)


def test_back_leads_through_what_was_asked(page: Any, browser: Any, project: Path) -> None:
    query = elements(browser, "#query")[0]
    example = elements(browser, "#examples button")[0]
    first = example.text
    click(browser, example)
    until(browser, lambda: drawn(browser) == 12)
    query.clear()
    query.send_keys("a red ring")
    until(browser, lambda: text(browser, "words") == "a red ring" and drawn(browser) == 12)
    click(browser, elements(browser, ".hit .tools button")[0])
    until(browser, lambda: elements(browser, "#asked svg"))
    assert "id=" in browser.current_url and not query.get_property("value")
    elements(browser, "#file")[0].send_keys(str(project / "data/scenes/images/000007.png"))
    until(browser, lambda: "1.0000" in text(browser, "hits"))
    assert "id=" not in browser.current_url and "q=" not in browser.current_url

    browser.back()
    until(browser, lambda: elements(browser, "#asked svg") and "1.0000" not in text(browser, "hits"))
    browser.forward()  # the file, which no address has
    until(browser, lambda: "1.0000" in text(browser, "hits"))
    browser.back()
    until(browser, lambda: "id=" in browser.current_url)
    for asked in ("a red ring", first):  # what was typed is one entry, however many letters
        browser.back()
        until(browser, lambda asked=asked: text(browser, "words") == asked and drawn(browser) == 12)
        assert query.get_property("value") == asked and not elements(browser, "#asked")[0].is_displayed()
    browser.back()
    until(browser, lambda: "images and" in text(browser, "status"))
    assert not elements(browser, ".hit")


def test_a_picture_is_shown_large_with_its_file(page: Any, browser: Any, project: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    elements(browser, "#query")[0].send_keys("a red ring")
    until(browser, lambda: drawn(browser) == 12)
    heights = {one.rect["height"] for one in elements(browser, ".hit")}
    assert max(heights) - min(heights) < 1  # no holes
    name = elements(browser, ".tag .id")[0]
    size = "return [arguments[0].scrollWidth <= arguments[0].clientWidth, arguments[0].getClientRects().length]"
    assert browser.execute_script(size, name) == [True, 1]
    click(browser, elements(browser, "button.picture")[0])
    large = elements(browser, "#large")[0]
    until(browser, lambda: large.is_displayed() and elements(browser, "#large img")[0].get_property("naturalWidth"))
    assert text(browser, "large-file") == str(project / f"data/scenes/images/{name.text}.png")
    assert elements(browser, "#large svg g") and text(browser, "large-caption")
    click(browser, elements(browser, "#copy")[0])
    until(browser, lambda: text(browser, "copy") in ("Copied", "Press Ctrl+C"))
    assert browser.execute_script("return `${getSelection()}`") == text(browser, "large-file")
    require_no_sideways(browser, "large")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(browser, lambda: not large.is_displayed())


def test_the_legend_names_no_unknown_words_where_there_are_none(page: Any, browser: Any) -> None:
    from selenium.webdriver.support.select import Select

    elements(browser, "#query")[0].send_keys("a red ring")
    until(browser, lambda: drawn(browser) == 12)
    click(browser, elements(browser, "#legend summary")[0])
    assert elements(browser, "#unknown-legend")[0].is_displayed() and "Plain word" in text(browser, "legend")
    Select(elements(browser, "#index")[0]).select_by_visible_text("encoded-demo")
    until(browser, lambda: "as encoded sees them" in text(browser, "status") and drawn(browser) == 12)
    assert not elements(browser, "#unknown-legend")[0].is_displayed()


def test_the_placeholder_fits(page: Any, browser: Any) -> None:
    query = elements(browser, "#query")[0]
    offers = "drop" in query.get_property("placeholder")
    assert offers == (browser.execute_script("return innerWidth") > 520)
    room = """
        const [box] = arguments, style = getComputedStyle(box);
        const pen = document.createElement("canvas").getContext("2d");
        pen.font = style.font;
        return box.clientWidth - pen.measureText(box.placeholder).width
            - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    """
    assert browser.execute_script(room, query) > 0


def test_a_server_that_has_stopped_is_named(browser: Any, project: Path) -> None:
    with served(project, "camera-demo") as (found, process):
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get(found)
        until(browser, lambda: "images and" in text(browser, "status"))
        process.kill()
        process.wait()
        elements(browser, "#query")[0].send_keys("a red ring")
        until(browser, lambda: "Is `selfalign serve` still running?" in text(browser, "error"))
    browser.get_log("browser")  # Chromium itself notes the refused connections
