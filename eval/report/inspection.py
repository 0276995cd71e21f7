"""What one run matched in one image: `selfalign inspect` draws it to a page or a picture and prints it as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from eval.matching.pairs import Pairs, match_pairs
from eval.report.drawing import caption_html, draw, highlights, place
from eval.report.matched_picture import SOFT, draw_regions, write_caption
from eval.report.pictures import data_uri, read_shown
from eval.report.templates import render
from extract.vision.decode import UnreadableImage
from manifests.errors import InputError
from manifests.files import atomic, write_text
from manifests.grounding import Grounding, read_grounding
from manifests.tables import Manifest
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData

SUFFIXES = (".html", ".png")


def run(
    *,
    name: str,
    image: str,
    caption: int | None,
    manifest_dir: Path,
    image_root: Path,
    regions: Path,
    tokens: Path,
    model: Path,
    device: str,
    out: Path,
    pieces: bool = False,
    text_features: Path | None = None,
) -> str:
    """Match the words of an image's captions with its regions, draw that to `out`, and give it as a table.

    Parameters
    ----------
    image : its id in the data set's manifest, of any split.
    caption : which of its captions, from 1; None for all of them.
    out : a `.html` page or a `.png` picture.

    Raises
    ------
    InputError for an image without regions, an unknown image or caption, and another kind of file.
    """
    if out.suffix not in SUFFIXES:
        raise InputError(f"can't draw to {out.suffix or 'no suffix'!r}", where=out, fix="name it .html or .png")
    listed = Manifest.open(manifest_dir)
    at = listed.row_of(image)
    if at is None:
        ids = listed.ids
        near = [id for id in ids if image in id][:3] or ids[:3]
        raise InputError(f"there is no image {image!r}", where=manifest_dir, fix=f"try {', '.join(near)}")
    row = listed.images[at]
    data = RetrievalData(manifest_dir, regions, tokens, row.split, pieces=pieces, text_features=text_features)
    if image in data.left_out:
        raise InputError(f"image {image} has no regions", where=regions, fix="choose another image")
    captions = data.captions_of([item.id for item in data.images].index(image))
    if caption is not None:
        if not 1 <= caption <= len(captions):
            raise InputError(
                f"image {image} has {len(captions)} captions, there is no caption {caption}",
                where="--caption",
                fix=f"choose one from 1 to {len(captions)}",
            )
        captions = captions[caption - 1 : caption]
    require_recipe(model, data)
    grounding = manifest_dir / "grounding.jsonl"
    truth = read_grounding(grounding) if grounding.exists() else {}
    pairs = match_pairs(load_model(model, device), data, 256, truth, captions)
    try:
        picture = read_shown(image_root / row.path)
    except (OSError, UnreadableImage):
        picture = None
    if out.suffix == ".png":
        _draw(out, name, pairs, captions, picture, truth.get(image))
    else:
        _write_page(out, name, pairs, captions, picture, truth.get(image))
    return "\n\n".join(table(pairs.row(number)) for number in captions)


def table(row: Mapping) -> str:
    """One caption's words as text for a terminal, best match first."""
    words = row["words"]
    concepts, known = any("concept" in word for word in words), any("right" in word for word in words)
    lines = [["word", "part of speech", "region", "cosine", "what the detector calls it"]]
    lines[0] += ["concept: word", "region"] * concepts + ["right?"] * known
    for word in words:
        line = [word["word"], word["pos"], str(word["region"]), f"{word['cosine']:.2f}"]
        line += [" ".join(reversed(word["labels"])) or "–"]
        line += [str(word["concept"]), str(word["region_concept"])] if concepts else []
        line += [verdict(word)] if known else []
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{row['image']}, caption {row['number']}: {row['text']}", *body])


def verdict(word: Mapping) -> str:
    """Whether a word's region is the object that it means, as far as that is known."""
    if "right" not in word:
        return ""
    return "right" if word["right"] else "fitting" if word["fitting"] else "wrong"


def _write_page(
    out: Path, name: str, pairs: Pairs, captions: Sequence[int], picture: np.ndarray | None, truth: Grounding | None
) -> None:
    shown = []
    for caption in captions:
        words = highlights(pairs.data, caption, truth)
        drawing = draw(pairs.data, caption, words, pairs.matches, truth)
        row = pairs.row(caption)
        shown.append({"row": row, "caption": caption_html(row["text"], words), "drawing": drawing})
    uri = None if picture is None else data_uri(picture, 480)
    write_text(out, render("inspect.html", run=name, captions=shown, picture=uri))


def _draw(
    out: Path, name: str, pairs: Pairs, captions: Sequence[int], picture: np.ndarray | None, truth: Grounding | None
) -> None:
    if picture is None:
        width, height = pairs.data.regions(int(pairs.data.caption_image[captions[0]])).image_size
        picture = np.full((height, width, 3), 240, np.uint8)
    with matplotlib.rc_context({"font.family": "sans-serif"}):
        share = 1 / len(captions)
        figure = Figure(figsize=(12, 4.6 * len(captions)), dpi=100, facecolor="white")
        for number, caption in enumerate(captions):
            top = 1 - number * share
            words = highlights(pairs.data, caption, truth)
            below = write_caption(figure, pairs.data.caption_text(caption), words, left=0.02, top=top - 0.07 * share)
            axes = figure.add_axes((0.02, top - 0.97 * share, 0.3, below - (top - 0.91 * share)))
            draw_regions(axes, picture, place(pairs.data, caption, words, pairs.matches, truth))
            title, *lines = table(pairs.row(caption)).split("\n")
            text = "\n".join([f"{name}: {title.partition(':')[0]}", *lines])
            figure.text(0.36, below - 0.07 * share, text, fontsize=8.5, family="monospace", va="top", color=SOFT)
        with atomic(out) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
