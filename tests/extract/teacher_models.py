"""Tiny vision models with random weights and their preprocessing, written as Hugging Face writes them."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

SIDE = 16


def write_vit(folder: Path, *, seed: int = 0, pooler: bool = True) -> Path:
    """Write a two-layer ViT of 24 numbers for pictures of 16 x 16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIDE,
            patch_size=4,
            initializer_range=0.5,
        )
        ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """Write a CLIP, whose vision half is the teacher."""
    half = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {**half, "image_size": SIDE, "patch_size": 8}
        config = CLIPConfig(text_config={**half, "vocab_size": 50}, vision_config=vision)
        CLIPModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
