"""A search's page: the pictures that were found, with the regions that the words matched; one file, no network."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report.pictures import Pictures
from eval.search.search import Answer
from manifests.files import write_text

HERE = Path(__file__).parent
REPORT = HERE.parent / "pages"


def write_page(answer: Answer, image_root: Path, out: Path) -> None:
    """Write the page of an answer to the file `out`; pictures that aren't below `image_root` are empty tiles."""
    pictures = Pictures()
    hits = [
        {"rank": rank, "hit": hit, "picture": pictures.name(image_root / hit.image.path)}
        for rank, hit in enumerate(answer.hits, 1)
    ]
    asked = None
    if answer.kind != "images":
        path = image_root / answer.asked.path if answer.asked else Path(answer.query)
        asked = pictures.name(path)
    environment = Environment(
        loader=FileSystemLoader(HERE / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda text: Markup(text)  # HTML of our own making: drawings, captions
    text = environment.get_template("search.html").render(
        answer=answer,
        hits=hits,
        asked=asked,
        run=answer.index.recipe["run"]["name"],
        dataset=answer.index.recipe["data set"]["name"],
        style=(REPORT / "style.css").read_text(encoding="utf-8"),
        script=(REPORT / "page.js").read_text(encoding="utf-8"),
        pictures=pictures,
    )
    write_text(out, text)
