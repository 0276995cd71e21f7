"""The presets are entries of `params.yaml` as they stand, with the paper's numbers."""

from pathlib import Path

import pytest
import yaml

from extract.packages import local_path
from extract.vision.weights import local_weights
from manifests.names import name_problem
from pipeline.params import DatasetSettings, read_params
from pipeline.strict_yaml import load
from train.settings import RunSettings

FOLDER = Path(__file__).parents[2] / "presets"
PRESETS = sorted(
    path for path in FOLDER.glob("*.yaml") if path.stem != "photographs" and not path.stem.startswith("studies-")
)
STUDIES = sorted(FOLDER.glob("studies-*.yaml"))
# learning rate, epochs, epochs between decays, pairs a batch: METHODS of the papers.
SCHEDULES = {
    ("flickr30k", "vsrn"): (2e-4, 30, 10, 128),
    ("coco", "vsrn"): (2e-4, 30, 15, 128),
    ("flickr30k", "camera"): (1e-4, 30, 10, 128),
    ("coco", "camera"): (1e-4, 40, 20, 128),
    ("flickr30k", "vse_infinity"): (5e-4, 25, 15, 128),
    ("coco", "vse_infinity"): (5e-4, 25, 15, 128),
    ("coco", "transformer"): (1e-5, 20, 15, 32),
}


def run_of(path: Path) -> tuple[RunSettings, DatasetSettings, dict]:
    preset = load(path.read_text(encoding="utf-8"))
    (values,), (source,) = preset["runs"].values(), preset["datasets"].values()
    return RunSettings.model_validate(values), DatasetSettings.model_validate(source), preset


def test_the_papers_runs_are_there() -> None:
    names = {
        f"{d}-{base}{end}" for d in ("coco", "flickr30k") for base in ("vsrn", "camera") for end in ("", "-selfalign")
    }
    names |= {"coco-vse-infinity", "flickr30k-vse-infinity", "coco-aladin", "coco-aladin-frozen", "flickr30k-vsrn-cusa"}
    assert {path.stem for path in PRESETS} == names


def test_the_preset_of_photographs_is_valid_and_needs_pypi_alone() -> None:
    preset = load((FOLDER / "photographs.yaml").read_text(encoding="utf-8"))
    data = DatasetSettings.model_validate(preset["datasets"]["photographs"])
    run = RunSettings.model_validate(preset["runs"]["photographs"])
    assert (
        run.dataset in preset["datasets"]
        and run.text.reads == "text_features"
        and run.dataset in preset[run.text.reads]
    )
    detector = data.regions.detector
    assert local_weights(detector.weights, detector.sha256).is_file()
    assert str(data.tokens.tokenizer) == preset["text_features"]["photographs"]["model"]
    assert (local_path(str(data.tokens.tokenizer)) / "model.safetensors").is_file()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_one_of_the_committed_runs(path: Path, tmp_path: Path) -> None:
    params = load((FOLDER.parent / "params.yaml").read_text(encoding="utf-8"))
    for section, entries in load(path.read_text(encoding="utf-8")).items():
        params[section] |= entries
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    assert set(read_params(tmp_path / "params.yaml").studies) == set(params["studies"])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_valid_and_has_the_papers_numbers(path: Path) -> None:
    run, data, preset = run_of(path)
    assert set(preset) <= {"datasets", "text_features", "teachers", "runs"}
    assert not any(name_problem(name) for section in preset.values() for name in section)
    assert list(preset["runs"]) == [path.stem] and [run.dataset] == list(preset["datasets"])
    rate, epochs, decay, batch = SCHEDULES[run.dataset, run.base.name]
    epochs += 20 if path.stem.endswith("-frozen") else 0
    assert (run.learning_rate, run.epochs, run.decay_epochs, run.batch_size) == (rate, epochs, decay, batch)
    assert (run.decay, run.gradient_clip, run.accumulate, run.precision, run.warmup_steps) == (
        0.1,
        2.0,
        1,
        "float32",
        0,
    )
    assert (data.regions.selection.min_boxes, data.regions.selection.max_boxes) == (36, 36)
    assert run.bag is None and "word_region" not in run.losses and "contrast" not in run.losses
    if run.base.name == "camera":
        assert (run.base.dim, run.base.heads, run.base.views, data.tokens.max_pieces) == (2048, 64, 12, 32)
        assert run.text.reads == "text_features" and run.dataset in preset["text_features"]
        assert run.losses["diversity"].weight == 0.01
    if run.base.name == "vsrn":
        assert (run.base.dim, run.base.graph_layers, run.text.reads, run.text.word_dim) == (2048, 4, "tokens", 300)
        assert (run.base.unit_regions, run.base.final_norm) == (
            (True, False) if run.dataset == "coco" else (False, True)
        )
        assert (run.losses["generation"].weight, run.losses["generation"].dim) == (1.0, 512)
    if run.base.name == "vse_infinity":
        assert (run.base.dim, run.base.size_augmentation, run.text.encoder.tune) == (1024, 0.2, True)
        assert (run.optimizer, run.encoder_rate) == ("adamw", 0.1)
    if run.base.name == "transformer":
        assert (run.base.head_heads, run.base.pooling, run.base.dropout) == (4, "first", 0.1)
        assert "triplet" not in run.losses
    else:
        assert (run.losses["triplet"].margin, run.losses["triplet"].all_negatives_epochs) == (0.2, 1)


@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem.endswith("-selfalign")], ids=lambda p: p.stem)
def test_selfalign_is_all_that_its_preset_adds(path: Path) -> None:
    with_it, without = (
        load(file.read_text(encoding="utf-8")) for file in (path, path.with_stem(path.stem.removesuffix("-selfalign")))
    )
    run, _, _ = run_of(path)
    lca, cra = run.losses["lca"], run.losses["cra"]
    assert (lca.weight, lca.num_concepts, lca.temperature, lca.epsilon) == (1.0, 1024, 0.1, 0.05)
    assert (lca.sinkhorn_iterations, lca.frozen_epochs, lca.both_directions) == (2, 1, False)
    assert (cra.weight, cra.temperature, cra.num_negatives) == (1.0, 0.7, 512)
    (ours,), (base,) = with_it.pop("runs").values(), without.pop("runs").values()
    assert ours["losses"].pop("lca") and ours["losses"].pop("cra") and ours == base
    assert with_it == without


def test_cusas_and_aladins_losses_are_the_published_ones() -> None:
    cusa, _, _ = run_of(PRESETS[0].with_stem("flickr30k-vsrn-cusa"))
    assert (cusa.losses["csa"].weight, cusa.losses["usa"].weight) == (1.0, 0.75)  # of SAF
    assert cusa.losses["cusa_contrast"].reads == "heads" and cusa.losses["cusa_contrast"].divided
    for name, teacher, start in (("coco-aladin", "joint", 0), ("coco-aladin-frozen", "frozen", 20)):
        run, _, _ = run_of(PRESETS[0].with_stem(name))
        assert (run.losses["alignment"].aggregation, run.losses["alignment"].all_negatives_epochs) == ("MrSw", 0)
        taught = run.losses["distillation"]
        assert (taught.mode, taught.scale, taught.teacher, taught.start_epoch) == ("listnet", 6.0, teacher, start)
