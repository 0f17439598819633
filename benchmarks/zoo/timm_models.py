"""The smallest model of each family of timm, at the smallest image it takes; the table is made by `choose_timm.py`."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from zoo.entry import Entry
from zoo.torchvision_stand_in import torchvision_stand_in

TABLE = Path(__file__).with_name("timm_models.csv")


def available() -> bool:
    """Whether timm is installed (`pip install --no-deps timm`: torchvision is not needed)."""
    return importlib.util.find_spec("timm") is not None


def load() -> ModuleType:
    """Import timm."""
    with torchvision_stand_in():
        import timm
    return timm


def entries() -> list[Entry]:
    """Return the families of timm."""
    with TABLE.open(encoding="utf-8") as file:
        return [_entry(row) for row in csv.DictReader(file)]


def _entry(row: dict[str, str]) -> Entry:
    size = int(row["image_size"])
    sizes = {"img_size": size} if row["size_as_argument"] == "1" else {}

    def make() -> torch.nn.Module:
        return load().create_model(row["model"], pretrained=False, **sizes)

    return Entry(f"timm/{row['family']}", "vision", make, lambda: (torch.randn(2, 3, size, size),))
