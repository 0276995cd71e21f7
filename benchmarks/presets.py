"""What the presets of the papers' runs take: parameters, hours and GPU memory of training, disk of the regions.

    python -m benchmarks.presets --out benchmarks/presets.json

Nothing is timed. A step's operations, and the bytes that its backward keeps, are counted on a processor, on batches of
8 and 16 random pairs. Encoders grow with a batch, losses over all pairs with its square: the preset's own batch follows
from the two. Memory is 16 bytes a parameter (weights, gradients, Adam's moments) and what the backward keeps.
"""

import json
from pathlib import Path

import click
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import benchmarks.step as made
from manifests.files import write_json
from train.model import RetrievalModel, build_model
from train.settings import RunSettings

FOLDER = Path(__file__).parents[1] / "presets"
CAPTIONS = {"flickr30k": 145_000, "coco": 566_747}  # of the training split
IMAGES = {"flickr30k": 31_014, "coco": 123_287}
RATE = 1e13  # operations a second: what a card of 2020 with 24 GB does in float32
BYTES_AN_IMAGE = 36 * (2048 * 2 + 4 * 4)
BATCHES = (8, 16)
TEACHERS = ("csa", "usa")  # their tables of all pairs take little beside the encoders
COMMAND = "python -m benchmarks.presets --out benchmarks/presets.json"


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--only", help="Presets whose name has this; OUT keeps the others.")
def main(out: Path | None, only: str | None) -> None:
    """Count what each preset takes."""
    rows = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem in ("photographs",) or "runs" not in preset or (only and only not in path.stem):
            continue
        ((name, values),) = preset["runs"].items()
        values["losses"] = {key: value for key, value in values["losses"].items() if key not in TEACHERS}
        if (contrast := values["losses"].get("cusa_contrast")) is not None:
            contrast["reads"] = "embedding"  # its heads are `csa`'s
        rows[name] = taken(RunSettings.model_validate(values | {"labels": "manifest"}))
        click.echo(f"{name}: {rows[name]}")
    if out:
        known = json.loads(out.read_text(encoding="utf-8"))["presets"] if only and out.exists() else {}
        write_json(out, {"command": COMMAND, "operations_a_second": RATE, "presets": known | rows})


def taken(settings: RunSettings) -> dict[str, float]:
    """Parameters in millions, hours, and GB on the device and on the disk."""
    model = built(settings)
    operations, kept = zip(*(counted(model, settings, batch) for batch in BATCHES), strict=True)
    data = "flickr30k" if settings.dataset.startswith("flickr") else "coco"
    steps = settings.epochs * CAPTIONS[data] / settings.batch_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters_m": round(parameters / 1e6, 1),
        "hours": round(steps * at(operations, settings.batch_size) / RATE / 3600, 1),
        "device_gb": round((16 * parameters + at(kept, settings.batch_size)) / 1e9, 1),
        "regions_gb": round(IMAGES[data] * BYTES_AN_IMAGE / 1e9, 1),
    }


def at(values: tuple[float, ...], batch: int) -> float:
    """a·B + b·B² through the two values that were counted."""
    first, second = BATCHES
    b = (values[1] / second - values[0] / first) / (second - first)
    return (values[0] / first - b * first) * batch + max(0.0, b) * batch**2


def counted(model: RetrievalModel, settings: RunSettings, batch: int) -> tuple[float, float]:
    """Operations of a step, and bytes that its backward keeps."""
    made.PAIRS = batch
    torch.manual_seed(0)
    regions, words = made.region_batch(), made.word_batch(8000)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = model.terms(model(regions, words), torch.arange(batch), epoch=settings.epochs - 1)
        sum(terms.values()).backward()
    own = sum(parameter.nbytes for parameter in model.parameters())
    return counter.get_total_flops(), max(0, sum(kept.values()) - own)


def built(settings: RunSettings) -> RetrievalModel:
    """The run's model with random weights; a text encoder in the loop has BERT-base's sizes."""
    encoder = BertModel(BertConfig(), add_pooling_layer=False) if settings.text.encoder else None
    return build_model(settings, made.FEATURES, 10_000, text_dim=made.TEXT, encoder=encoder)


if __name__ == "__main__":
    main()
