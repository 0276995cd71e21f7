"""The presets are entries of `params.yaml` as they stand, with the paper's numbers."""

from pathlib import Path

import pytest

from manifests.names import name_problem
from pipeline.params import DatasetSettings
from pipeline.strict_yaml import load
from train.settings import CameraSettings, RunSettings

PRESETS = sorted((Path(__file__).parents[2] / "presets").glob("*.yaml"))
# learning rate, epochs, epochs between decays: METHODS of the paper's two bases.
SCHEDULES = {
    ("flickr30k", "vsrn"): (2e-4, 30, 10),
    ("coco", "vsrn"): (2e-4, 30, 15),
    ("flickr30k", "camera"): (1e-4, 30, 10),
    ("coco", "camera"): (1e-4, 40, 20),
}


def test_both_bases_with_and_without_selfalign_on_both_data_sets() -> None:
    names = {f"{d}-{base}{end}" for d, base in SCHEDULES for end in ("", "-selfalign")}
    assert {path.stem for path in PRESETS} == names


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_and_has_the_papers_numbers(path: Path) -> None:
    preset = load(path.read_text(encoding="utf-8"))
    assert set(preset) <= {"datasets", "text_features", "runs"}
    assert not any(name_problem(name) for section in preset.values() for name in section)
    (name, values), (dataset, source) = *preset["runs"].items(), *preset["datasets"].items()
    run, data = RunSettings.model_validate(values), DatasetSettings.model_validate(source)
    assert name == path.stem and run.dataset == dataset
    camera = isinstance(run.base, CameraSettings)
    assert (run.learning_rate, run.epochs, run.decay_epochs) == SCHEDULES[dataset, run.base.name]
    assert (run.batch_size, run.decay, run.gradient_clip, run.base.dim) == (128, 0.1, 2.0, 2048)
    assert (run.triplet.margin, run.triplet.all_negatives_epochs) == (0.2, 1)
    assert (run.accumulate, run.precision, run.warmup_steps, run.patience) == (1, "float32", 0, None)
    assert (data.regions.selection.min_boxes, data.regions.selection.max_boxes) == (36, 36)
    if camera:
        assert (run.base.heads, run.base.views, run.base.diversity, data.tokens.max_pieces) == (64, 12, 0.01, 32)
        assert run.text.reads == "text_features" and dataset in preset["text_features"]
    else:
        assert (run.base.graph_layers, run.base.caption_decoder.dim, run.text.reads) == (4, 512, "tokens")
    aligned = run.selfalign
    assert (aligned is not None) == name.endswith("-selfalign")
    if aligned:
        lca, cra = aligned.concept, aligned.context
        assert (lca.weight, lca.num_concepts, lca.temperature, lca.epsilon) == (1.0, 1024, 0.1, 0.05)
        assert (lca.sinkhorn_iterations, lca.frozen_epochs, lca.both_directions) == (2, 1, False)
        assert (cra.weight, cra.temperature, cra.num_negatives) == (1.0, 0.7, 512)
        assert aligned.word_region is None and aligned.bag is None


@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem.endswith("-selfalign")], ids=lambda p: p.stem)
def test_selfalign_is_all_that_its_preset_adds(path: Path) -> None:
    with_it, without = (
        load(file.read_text(encoding="utf-8")) for file in (path, path.with_stem(path.stem.removesuffix("-selfalign")))
    )
    (ours,), (base,) = with_it.pop("runs").values(), without.pop("runs").values()
    assert ours.pop("selfalign") and ours == base
    assert with_it == without
