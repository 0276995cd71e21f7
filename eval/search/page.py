"""A search's page: the pictures that were found, with the regions that the words matched; one file, no network."""

from pathlib import Path

from eval.report.pictures import Pictures
from eval.report.templates import render
from eval.search.search import Answer
from manifests.files import write_text

SIDE = 320


def write_page(answer: Answer, image_root: Path, out: Path) -> None:
    """Write the page of an answer to the file `out`; pictures that aren't below `image_root` are empty tiles."""
    pictures, asked = Pictures(), None
    if answer.kind != "images":
        asked = pictures.whole(image_root / answer.asked.path if answer.asked else Path(answer.query), SIDE)
    of_asked = answer.kind == "captions" and answer.asked  # its captions: all of the one picture
    hits = [
        {"rank": rank, "hit": hit, "picture": asked if of_asked else pictures.whole(image_root / hit.image.path, SIDE)}
        for rank, hit in enumerate(answer.hits, 1)
    ]
    write_text(out, render("search.html", answer=answer, hits=hits, asked=asked))
