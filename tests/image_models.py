"""Small random models of images, and digits as PNG files, for the tests of images."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from rankwise.tasks.digits.mnist import load_digits_data

CONFIGS = {
    "vit": lambda size: ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=size,
        patch_size=size // 4,
    ),
    "resnet": lambda size: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    ),
}


def make_images(folder: Path, n: int, labels: int = 10, *, start: int = 0) -> Path:
    """Write n of the embedded digits of each label as PNG files of 28 x 28, in a folder for each."""
    from PIL import Image

    split = load_digits_data().train
    for label in range(labels):
        place = folder / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        for i in np.flatnonzero(split.labels == label)[start : start + n]:
            Image.fromarray(split.images[i]).save(place / f"{i}.png")
    return folder


def make_image_model(folder: Path, kind: str, *, size: int = 28, seed: int = 0) -> Path:
    """Save a random classifier of images and its processor: "vit" or "resnet" of transformers, or a model of timm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in CONFIGS:
            AutoModelForImageClassification.from_config(CONFIGS[kind](size)).save_pretrained(folder)
            ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
        else:
            import timm

            model = timm.create_model(kind, pretrained=False, num_classes=7)
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
            timm.models.save_for_hf(model, folder)
    return folder
