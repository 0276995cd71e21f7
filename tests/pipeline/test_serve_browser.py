"""The search page in a real browser, served by the command, as somebody would use it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    """Where `selfalign serve` serves all indexes; afterwards it is ended as a user ends it."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SELFALIGN_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0"]
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
        assert [line.split(" images of demo, as ")[0] for line in said[:-1]] == ["48"] * 3
        yield found[1]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode, rest) == (0, "stopped\n")
    finally:
        process.kill()


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
    assert "product" in text(browser, "score-legend") and elements(browser, "#legend dt")[0].is_displayed()

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
    assert elements(browser, ".tag .id")[0].text == first and "1.0000" in text(browser, "hits")
    assert len(elements(browser, "#caption-list li")) == 10 and "cosine" in text(browser, "score-legend")
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
    for typed, message in (("quagga zeb", "knows none of these words: quagga, zeb"), ("?!", "images and")):
        query.clear()
        query.send_keys(typed)
        until(browser, lambda message=message: message in text(browser, "status"))
        assert not elements(browser, ".hit")
    picture = tmp_path / "no.png"
    picture.write_bytes(b"no picture")
    elements(browser, "#file")[0].send_keys(str(picture))
    until(browser, lambda: "The picture: the picture can't be read" in text(browser, "error"))
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
