"""The `scenes` stage: draws the demo data set, with captions and their truth in Karpathy's JSON.

Beside Karpathy's keys, an image has "objects" (box, shape, colour, texture, size). A sentence has "phrases" (start,
end, object, kind). `manifest` turns both into grounding. Scene number i depends on the seed and i alone.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from demo.scenes.describing import describe
from demo.scenes.drawing import draw_scene
from demo.scenes.settings import SceneSettings
from manifests.files import canonical_json, whole_folder, write_text
from manifests.locks import one_writer
from manifests.progress import progress


@one_writer("scenes")
def run(*, settings: SceneSettings, out: Path) -> None:
    """Draw and describe all scenes into `out`/images/000000.png ... and `out`/captions.json.

    They are made in a folder beside `out` that takes its place at the end: `out` is whole, or as it was before.
    """
    with whole_folder(out) as folder:
        (folder / "images").mkdir()
        splits = ["train"] * settings.train + ["val"] * settings.val + ["test"] * settings.test
        make = partial(_make, settings, folder / "images")
        workers = min(os.cpu_count() or 1, 8, len(splits) // 100 + 1)
        with ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext() as pool:
            each = partial(pool.map, chunksize=32) if pool else map
            made = each(make, range(len(splits)), splits)
            images = list(progress(made, what="scenes", unit="images", total=len(splits)))
        lines = ",\n".join(canonical_json(image) for image in images)
        write_text(folder / "captions.json", f'{{"dataset":"scenes","images":[\n{lines}\n]}}\n')


def _make(settings: SceneSettings, folder: Path, number: int, split: str) -> dict:
    """Write picture `number` and return its entry for the captions file."""
    rng = np.random.default_rng([settings.seed, number])
    pixels, scene = draw_scene(rng, settings.size, settings.min_objects, settings.max_objects)
    name = f"{number:06d}.png"
    Image.fromarray(pixels).save(folder / name, compress_level=1)
    return {
        "filename": name,
        "imgid": number,
        "split": split,
        "objects": [
            {"box": item.box, "shape": item.shape, "colour": item.colour, "texture": item.texture, "size": item.size}
            for item in scene.objects
        ],
        "sentences": [
            {
                "raw": caption.text,
                "phrases": [
                    {"start": phrase.start, "end": phrase.end, "object": phrase.object, "kind": phrase.kind}
                    for phrase in caption.phrases
                ],
            }
            for caption in describe(rng, scene)
        ],
    }
