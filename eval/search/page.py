"""A search's page: the pictures that were found, with the regions that the words matched; one file, no network."""

from pathlib import Path

from eval.report.pictures import Pictures
from eval.report.templates import render
from eval.search.answer import Answer, WordMatches
from manifests.files import write_text

SIDE = 320


def write_page(answer: Answer, matches: WordMatches | None, image_root: Path, out: Path) -> None:
    """Write the page of an answer to the file `out`. `matches` are those of its hits, in their order.

    A picture that isn't below `image_root` is an empty tile.
    """
    pictures, asked = Pictures(), None
    if answer.kind != "images":
        asked = pictures.whole(image_root / answer.asked.path if answer.asked else Path(answer.query), SIDE)
    hits = []
    for place, hit in enumerate(answer.hits):
        own = asked if answer.kind == "captions" else pictures.whole(image_root / hit.image.path, SIDE)
        drawing = matches.drawing(place) if matches else None
        shown = {"caption": matches.html(place) if matches else None, "svg": drawing.svg if drawing else None}
        hits.append(
            {"rank": place + 1, "hit": hit, "picture": own, "aspect": drawing.aspect if drawing else 1, **shown}
        )
    write_text(out, render("search.html", answer=answer, hits=hits, asked=asked))
