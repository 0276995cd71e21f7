"""How fast the region stage is, against what it could be and against what forks of detectron2 do.

    python -m benchmarks.extract --out benchmarks/extract.json

Two comparisons, each interleaved in one process, medians of the ratios.

1. The demo's detector: images/s of the whole stage (hashing, decoding, selection, store). The other side is the bare
   network's forward on the same pictures, already in memory.
2. A full-size R50-C4 with random weights: the same stage, fixed 36 of 300 proposals. The other side is a plain loop
   over single pictures, as in published forks. It runs res5 on 1,000 proposals, NMS in a loop over 1,600 classes, and
   res5 again on the chosen regions.
"""

import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torchvision.ops import nms

from demo.scenes.drawing import draw_scene
from extract.settings import RegionSettings
from extract.stages.regions import run
from extract.vision.decode import decode
from extract.vision.loading import load_detector
from manifests.files import sha256, write_json
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from pipeline.strict_yaml import load


def pictures(folder: Path, count: int, size: tuple[int, int] | None) -> list[CaptionedImage]:
    """Drawn scenes as PNG (or, enlarged to `size`, as JPEG) with their manifest rows."""
    rows = []
    for number in range(count):
        pixels, _ = draw_scene(np.random.default_rng([11, number]))
        image = Image.fromarray(pixels)
        path = folder / (f"{number:06d}.png" if size is None else f"{number:06d}.jpg")
        (image if size is None else image.resize(size)).save(path, quality=90)
        width, height = size or image.size
        rows.append(CaptionedImage(path.stem, path.name, sha256(path), width, height, "train", ()))
    write_manifest(folder / "manifest", rows)
    return rows


def stage_seconds(
    folder: Path, settings: RegionSettings, batch_size: int, device: str = "cpu", readers: int = 2
) -> float:
    """One run of the stage into an empty folder, loading the weights included."""
    places = {"out": folder / "regions", "cache": folder / "cache"}
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
    start = time.perf_counter()
    run(
        dataset="benchmark",
        manifest=folder / "manifest",
        images=folder,
        settings=settings,
        device=device,
        batch_size=batch_size,
        readers=readers,
        **places,
    )
    return time.perf_counter() - start


def bare_forward(
    folder: Path, rows: list[CaptionedImage], settings: RegionSettings, batch_size: int, device: str = "cpu"
):
    """A function that runs the network alone on the pictures, batched, from the device's memory; gives its seconds."""
    detector = load_detector(settings.detector, settings.selection, device)
    prepared = [detector.prepare(decode((folder / row.path).read_bytes())) for row in rows]
    batches = [torch.stack(prepared[i : i + batch_size]).to(device) for i in range(0, len(prepared), batch_size)]

    @torch.inference_mode()
    def forward() -> float:
        start = time.perf_counter()
        for batch in batches:
            detector.candidates(batch)
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return forward


def fork_style(folder: Path, rows: list[CaptionedImage], settings: RegionSettings):
    """A function that does what published forks do: one picture at a time, res5 on 1,000 proposals, then again."""
    spec = {**settings.detector.model_dump(), "proposals_after": 1000}
    detector = load_detector(spec, settings.selection)
    detector.network.regions_at_a_time = 1000

    @torch.inference_mode()
    def loop() -> float:
        start = time.perf_counter()
        for row in rows:
            rgb = decode((folder / row.path).read_bytes())
            pixels = detector.prepare(rgb)[None].flip(1).float() - detector._mean
            maps = detector.network.maps(pixels)
            ((proposals, _),) = detector.network.proposals(maps, tuple(pixels.shape[-2:]), at_least=36)
            logits, _, _ = detector.network.classify(detector.network.region_features(maps, [proposals]))
            probabilities = logits.softmax(1)[:, :-1]
            confidence = torch.zeros(len(proposals))
            for scores in probabilities.T:
                kept = nms(proposals, scores, settings.selection.nms_threshold)
                confidence[kept] = torch.maximum(confidence[kept], scores[kept])
            chosen = proposals[confidence.topk(settings.selection.max_boxes).indices]
            detector.network.region_features(maps, [chosen])
        return time.perf_counter() - start

    return loop


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
BOTTOM_UP = {"rule": "bottom_up", "min_boxes": 36, "max_boxes": 36}


def random_c4(path: Path, depth: tuple[int, ...] = R50) -> dict[str, object]:
    """A random C4 checkpoint with 1,600 classes and 400 attributes in detectron2's format; its detector spec.

    `depth` says how many blocks each stage has.
    """
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, inside: int, side: int, *, norm: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(out, inside, side, side, generator=generator) / (inside * side**2) ** 0.5
        if norm:
            ones, zeros = torch.ones(out), torch.zeros(out)
            state.update({f"{name}.norm.weight": ones, f"{name}.norm.bias": zeros})
            state.update({f"{name}.norm.running_mean": zeros, f"{name}.norm.running_var": ones})
        else:
            state[f"{name}.bias"] = torch.zeros(out)

    conv("backbone.stem.conv1", 64, 3, 7)
    inside = 64
    for stage, (blocks, width) in enumerate(zip(depth, (64, 128, 256, 512), strict=True), 2):
        prefix = f"backbone.res{stage}" if stage < 5 else "roi_heads.res5"
        for block in range(blocks):
            if block == 0:
                conv(f"{prefix}.0.shortcut", 4 * width, inside, 1)
            conv(f"{prefix}.{block}.conv1", width, inside, 1)
            conv(f"{prefix}.{block}.conv2", width, width, 3)
            conv(f"{prefix}.{block}.conv3", 4 * width, width, 1)
            inside = 4 * width
    conv("proposal_generator.rpn_head.conv", 1024, 1024, 3, norm=False)
    conv("proposal_generator.rpn_head.objectness_logits", 15, 1024, 1, norm=False)
    conv("proposal_generator.rpn_head.anchor_deltas", 60, 1024, 1, norm=False)
    # Random deltas would send nearly all anchors out of the picture: as they are, they give 1,000 proposals.
    state["proposal_generator.rpn_head.anchor_deltas.weight"].zero_()
    for name, out, inputs in (
        ("box_predictor.cls_score", 1601, 2048),
        ("box_predictor.bbox_pred", 6400, 2048),
        ("attribute_predictor.fc", 512, 2304),
        ("attribute_predictor.attr_score", 400, 512),
    ):
        state[f"roi_heads.{name}.weight"] = torch.randn(out, inputs, generator=generator) * 0.01
        state[f"roi_heads.{name}.bias"] = torch.zeros(out)
    state["roi_heads.attribute_predictor.obj_embed.weight"] = torch.randn(1601, 256, generator=generator)
    torch.save({"model": state}, path)
    return {"name": "rcnn", "weights": str(path), "sha256": sha256(path), "proposals_after": 300}


def region_settings(spec: dict[str, object]) -> RegionSettings:
    """A detector's settings with 36 regions a picture."""
    return TypeAdapter(RegionSettings).validate_python({"detector": spec, "selection": BOTTOM_UP})


def compare(what: str, ours, theirs, count: int, repeats: int) -> dict[str, object]:
    """Seconds of the two, in turn, `repeats` times; images/s and the median ratio of the rates."""
    theirs()
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    result = {
        "what": what,
        "images": count,
        "stage_images_per_s": round(count / statistics.median(a for a, _ in pairs), 2),
        "other_images_per_s": round(count / statistics.median(b for _, b in pairs), 2),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "ratios": [round(b / a, 3) for a, b in pairs],
    }
    click.echo(json.dumps(result))
    return result


@click.command()
@click.option("--scenes", default=1024, help="pictures of the first comparison")
@click.option("--photos", default=4, help="pictures of the second comparison")
@click.option("--repeats", default=5)
@click.option("--threads", default=2, help="of torch")
@click.option("--batch", default=16, help="pictures a batch")
@click.option("--out", type=Path, help="JSON file for the figures")
def main(scenes: int, photos: int, repeats: int, threads: int, batch: int, out: Path | None) -> None:
    torch.set_num_threads(threads)
    params = load(Path("params.yaml").read_text(encoding="utf-8"))["datasets"]["demo"]["regions"]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if scenes:
            settings = RegionSettings(**params)
            (folder / "scenes").mkdir()
            rows = pictures(folder / "scenes", scenes, None)
            results.append(
                compare(
                    "demo detector: stage / bare forward",
                    lambda: stage_seconds(folder / "scenes", settings, batch),
                    bare_forward(folder / "scenes", rows, settings, batch),
                    scenes,
                    repeats,
                )
            )
        if photos:
            spec = random_c4(folder / "r50.pth")
            settings = region_settings(spec)
            (folder / "photos").mkdir()
            rows = pictures(folder / "photos", photos, (640, 480))
            results.append(
                compare(
                    "R50-C4: stage / fork-style loop",
                    lambda: stage_seconds(folder / "photos", settings, min(batch, 2)),
                    fork_style(folder / "photos", rows, settings),
                    photos,
                    max(1, repeats // 2),
                )
            )
    if out:
        machine = {"cores": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}
        write_json(out, {"machine": machine, "batch": batch, "results": results})


if __name__ == "__main__":
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
