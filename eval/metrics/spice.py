"""Metric `spice`: NDCG by how alike captions' scenes are (Anderson et al., ECCV 2016), by its authors' Java program.

The program (`spice-1.0.jar` with the folder `lib` beside it, which holds Stanford CoreNLP and its models) is not part
of this project. Where it or Java is missing, SPICE is left out with the reason. It parses every sentence and
takes about a millisecond a pair, so a split of 1,000 images and 5,000 captions takes hours.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from eval.evaluated import Evaluated
from eval.metrics import METRICS
from eval.metrics.metric import Metric
from eval.ndcg import relevance_ndcg
from manifests.errors import InputError
from manifests.progress import progress
from manifests.typed import Settings

PAIRS_A_CALL = 200_000


class SpiceSettings(Settings):
    """The place of SPICE's program."""

    jar: Path = Field(description="spice-1.0.jar, with its folder lib beside it")


@METRICS.add("spice")
class SpiceNDCG(Metric):
    Settings = SpiceSettings
    place = ("ndcg", "spice")

    def lacking(self) -> str | None:
        return reason_to_skip(self.settings.jar)

    def figures(self, run: Evaluated) -> dict[str, float]:
        captions_of = [run.data.captions_of(image) for image in range(len(run.data.images))]
        return relevance_ndcg(spice_relevance(run.texts, captions_of, self.settings.jar), **run.across)


def reason_to_skip(jar: Path) -> str | None:
    """Why SPICE can't be computed on this machine; None if it can."""
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    return None if jar.is_file() else f"there is no file {jar}"


def spice_relevance(captions: Sequence[str], captions_of: Sequence[Sequence[int]], jar: Path) -> np.ndarray:
    """SPICE's F of every caption against each image's captions taken together: `float32 [C, N]`.

    An image without a caption is relevant to nothing. Raises InputError with the program's last words where it fails.
    """
    described = [image for image, own in enumerate(captions_of) if len(own)]
    references = {image: [captions[caption] for caption in captions_of[image]] for image in described}
    relevance = np.zeros((len(captions), len(captions_of)), np.float32)
    rows = max(1, PAIRS_A_CALL // max(1, len(described)))
    for start in progress(range(0, len(captions), rows), what="spice", unit="calls"):
        pairs = [(caption, image) for caption in range(start, min(start + rows, len(captions))) for image in described]
        asked = [
            {"image_id": number, "test": captions[caption], "refs": references[image]}
            for number, (caption, image) in enumerate(pairs)
        ]
        for answer in _call(asked, jar):
            relevance[pairs[answer["image_id"]]] = answer["scores"]["All"]["f"]
    return relevance


def _call(asked: list[dict], jar: Path) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(asked), encoding="utf-8")
        command = ["java", "-Xmx8G", "-jar", str(jar), str(given), "-out", str(found), "-silent"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode or not found.exists():
            raise InputError(
                f"SPICE ended with code {done.returncode}: {' '.join(done.stderr.split())[-300:]}",
                where=jar,
                fix="run it by hand on two sentences, or leave evaluate.metrics.spice out",
            )
        return json.loads(found.read_text(encoding="utf-8"))
