"""The report of the small project in a real browser, Debian's chromium, as somebody would look at it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.project import Project, Result

pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
SIZES = {"phone": (390, 844), "desktop": (1400, 900)}
LARGEST = 10_000_000
# As a phone has it: the page is as wide as the screen, whatever the window's least width is.
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; skipped where there is none, unless REQUIRE_BROWSER says that there must be (.ci/run)."""
    if CHROMIUM is None or DRIVER is None:
        message = "chromium and chromium-driver aren't installed (.ci/run installs them from Debian's packages)"
        pytest.fail(message) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(message)
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed (the extra `test` has it)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-prefers-reduced-motion",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(project: Project, repeated: Result) -> Path:
    return project.root / "report"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", ["index.html", "pictures.html"])
def test_the_report_can_be_looked_at(browser: Any, report: Path, page: str, size: str) -> None:
    browser.set_window_size(*SIZES[size])
    if size == "phone":
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    else:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get((report / page).as_uri())
    assert browser.execute_script("return innerWidth") == SIZES[size][0]
    require_no_sideways(browser, "at first")

    for link in elements(browser, ".parts a"):
        click(browser, link)
        target = browser.execute_script("return document.querySelector(arguments[0].hash)", link)
        top = browser.execute_script("return arguments[0].getBoundingClientRect().top", target)
        assert target is not None and top < SIZES[size][1]
    for button in elements(browser, "[data-show]"):
        click(browser, button)
        assert button.get_attribute("aria-pressed") == "true"
        kind_shown = button.get_attribute("data-show")
        shown = [e.get_attribute("class") for e in elements(browser, ".example:not([hidden])")]
        assert shown and all(kind_shown in ("all", kind.split()[1]) for kind in shown)
        click(browser, elements(browser, "[data-show=all]")[0])
    for example in elements(browser, ".example"):
        word = elements(example, ".word")[0]
        click(browser, word)
        assert word.get_attribute("aria-pressed") == "true" and elements(example, ".regions g.on")
        click(browser, word)
        assert word.get_attribute("aria-pressed") == "false" and not elements(example, ".regions g.on")
    for summary in elements(browser, "details:not([open]) > summary"):
        click(browser, summary)
    assert all(details.get_attribute("open") for details in elements(browser, "details"))
    require_no_sideways(browser, "with everything open")

    pictures = browser.execute_script(
        "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
    )
    assert len(pictures) > 3 and min(pictures) > 0
    unnamed = "return [...document.images].filter(i => !i.alt).length"
    assert browser.execute_script(unnamed) == 0
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_pages_lead_to_each_other(browser: Any, report: Path) -> None:
    browser.get((report / "index.html").as_uri())
    seen = []
    for number in range(len(elements(browser, ".pages a"))):
        click(browser, elements(browser, ".pages a")[number])
        seen.append(Path(browser.current_url).name)
        assert browser.title and elements(browser, ".pages a")[number].get_attribute("aria-current") == "page"
    assert seen == ["index.html", "pictures.html"]


def test_the_keyboard_reaches_words_and_the_skip_link(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get((report / "index.html").as_uri())
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"
    word = elements(browser, ".word")[0]
    word.send_keys(Keys.ENTER)
    assert word.get_attribute("aria-pressed") == "true"


def test_the_report_is_small(report: Path) -> None:
    assert sum(file.stat().st_size for file in report.rglob("*") if file.is_file()) < LARGEST


def elements(within: Any, selector: str) -> list[Any]:
    return within.find_elements("css selector", selector)


def click(browser: Any, element: Any) -> None:
    """Bring an element to the middle of the screen, as a reader would, and click it where it is."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def require_no_sideways(browser: Any, when: str) -> None:
    """Fail where the page itself scrolls sideways; its tables may, each within its own frame."""
    width, seen = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= seen, f"{when}: the page is {width} wide on a screen of {seen}"
