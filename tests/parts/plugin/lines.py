"""Reader `lines`: a picture a line, "split: path: caption | caption"."""

from manifests.readers import READERS, Reader
from manifests.source import SourceCaption, SourceImage


@READERS.add("lines")
class Lines(Reader):
    title = "lines of split, path and captions"
    layout = "train: a.jpg: A dog. | A small dog."

    @staticmethod
    def recognises(preview):
        return preview.first_line.count(": ") == 2

    @staticmethod
    def read(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            split, picture, captions = line.split(": ", 2)
            own = tuple(SourceCaption(f"line {number}", text) for text in captions.split(" | "))
            yield SourceImage(f"line {number}", None, picture, split, own)
