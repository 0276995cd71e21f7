"""Pages from the templates of `pages/`: one file each, with style and script inside, that asks for no network."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

PAGES = Path(__file__).parent / "pages"


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`."""
    environment = Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["names"] = _names
    environment.filters["plain"] = lambda text: Markup(text)  # HTML of our own making: charts, drawings, captions
    style = (PAGES / "style.css").read_text(encoding="utf-8")
    script = (PAGES / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, script=script, **values)


def palette(name: str) -> tuple[str, ...]:
    """The style sheet's colours of that `name` (run, or k of words) on a light page, as hex."""
    style = (PAGES / "style.css").read_text(encoding="utf-8").partition("@media")[0]
    return tuple(re.findall(rf"--{name}\d:(#[0-9a-f]{{6}})", style))


def _names(text: str) -> Markup:
    """Sentences with run names between backticks, as HTML."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
