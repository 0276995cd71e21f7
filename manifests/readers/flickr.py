"""Flickr's token files: Flickr8k.token.txt, results_20130124.token, Flickr8k-CN: `name.jpg#0<TAB>caption`.

Source: Hodosh et al., "Framing Image Description as a Ranking Task" (2013); Young et al. (2014).
"""

import re
from pathlib import Path

from manifests.columns import Gathered
from manifests.errors import InputError
from manifests.jsonl import lines_or_errors
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption

# Flickr8k-CN has a language between name and number (`#zhc#0`) and a space instead of a tab.
_LINE = re.compile(r"(?P<image>[^\t#]+)(?:#[A-Za-z]\w*)*#\d+[\t ]+(?P<caption>.*)")


@READERS.add("flickr")
class Flickr(Reader):
    """One line a caption."""

    title = "Flickr's token file"
    layout = "a.jpg#0<TAB>A dog."

    @staticmethod
    def recognises(preview: Preview) -> bool:
        return bool(_LINE.fullmatch(preview.first_line))

    @staticmethod
    def read(path: Path) -> Items:
        found = Gathered(path)
        for number, line in enumerate(lines_or_errors(path), 1):
            if isinstance(line, InputError):
                yield LeftOut("row", line)
                continue
            if not line.strip():
                continue
            row = f"line {number}"
            if not (parts := _LINE.fullmatch(line.rstrip("\r\n"))):
                message = f"no image, number and caption in {line.strip()[:60]!r}"
                yield LeftOut("row", InputError(message, where=f"{path} {row}", fix=f"write {Flickr.layout}"))
                continue
            yield from found.add(row, parts["image"], [SourceCaption(row, parts["caption"])])
        yield from found.all()
