"""A small project that can be searched: three runs over one data set, made by the real stages."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

from demo.scenes import stage as scenes
from eval.search import index as indexing
from eval.validation import validate
from extract.stages import regions, text_features, tokens
from manifests import manifest
from pipeline import places
from pipeline.params import Params, read_params
from pipeline.searching import source
from tests.encoders import write_encoder
from tests.pipeline.project import CHECKOUT, shrink_demo
from train import train


def make_searched(root: Path) -> Path:
    """Fill a folder with a project: `demo`, the runs `vsrn-selfalign`, `camera` with three views and `encoded` on text
    features, and an index of each."""
    encoder = write_encoder(root / "encoder")
    params = shrink_demo(yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8")))
    params["scenes"] |= {"train": 32, "val": 6, "test": 10}
    params["ensembles"] = {}
    demo, run = params["datasets"]["demo"], params["runs"]["vsrn-selfalign"]
    demo["regions"]["detector"]["weights"] = str(CHECKOUT / demo["regions"]["detector"]["weights"])
    demo["tokens"] |= {"tokenizer": str(encoder), "min_count": 1}
    run |= {"epochs": 1, "batch_size": 16}
    base = {"name": "camera", "dim": 32, "heads": 2, "views": 3}
    params["runs"] = {
        "vsrn-selfalign": run,
        "camera": copy.deepcopy(run) | {"base": base},
        "encoded": copy.deepcopy(run) | {"text": {"reads": "text_features"}},
    }
    params["text_features"] = {"demo": {"model": str(encoder)}}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _make(read_params())
    return root


def _make(params: Params) -> None:
    data = params.dataset("demo")
    scenes.run(settings=params.scenes, out=places.SCENES)
    manifest.run(**data.source.model_dump(exclude={"pictures", "missing", "watch"}), out=places.manifest("demo"))
    listed = places.manifest("demo")
    regions.run(
        dataset="demo",
        manifest=listed,
        images=data.source.images,
        settings=data.regions,
        out=places.regions("demo"),
        cache=Path(".staging"),
    )
    tokens.run(manifest=listed, settings=data.tokens, out=places.tokens("demo"))
    text_features.run(
        dataset="demo",
        tokens=places.tokens("demo"),
        settings=params.text_feature("demo"),
        out=places.text_features("demo"),
        cache=Path(".staging"),
    )
    for name, settings in params.runs.items():
        cached = settings.text.reads == "text_features"
        train.run(
            name=name,
            manifest=listed,
            regions=places.regions("demo"),
            tokens=places.tokens("demo"),
            settings=settings,
            validate=lambda model, data: validate(model, data, 64),
            out=places.model(name),
            curves=places.curves(name),
            staging=Path(".staging"),
            text_features=places.text_features("demo") if cached else None,
        )
        own = source(params, name, "demo")
        indexing.run(source=own, out=places.index(name, "demo"), device="cpu", batch_size=16)
