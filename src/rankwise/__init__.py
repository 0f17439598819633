"""Rankwise: find the smallest LoRA that does the job.

Names are loaded when they are first used, so that `import rankwise` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.adapter_files import load_adapter, load_loralib, save_adapter, save_merged, swap_adapter
    from rankwise.api import Sweep, sweep
    from rankwise.errors import RankwiseError
    from rankwise.lora.active import activate, by_row, disabled, rename
    from rankwise.lora.base.state import base_state_dict
    from rankwise.lora.config import LoRAConfig
    from rankwise.lora.inject import eject, inject
    from rankwise.lora.layer_types import LayerType, register_layer_type
    from rankwise.lora.merge import merge, unmerge
    from rankwise.pack.counts import CountMetric
    from rankwise.pack.optimisers import SGD, AdamW, Muon
    from rankwise.quantising import quantize
    from rankwise.surgery.combining import combine
    from rankwise.surgery.extracting import extract
    from rankwise.surgery.layer_ranks import ranks_by_layer
    from rankwise.surgery.resizing import resize
    from rankwise.sweeps.model_metric import ModelMetric
    from rankwise.sweeps.run.units.local import LocalProcesses
    from rankwise.sweeps.run.units.on_ray import Ray
    from rankwise.tasks.text.card.push import push
    from rankwise.tasks.text.use.prediction import predict
    from rankwise.tasks.trainers.sweep_trainer import sweep_trainer
    from rankwise.train.settings import Training

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdamW",
    "CountMetric",
    "LayerType",
    "LoRAConfig",
    "LocalProcesses",
    "ModelMetric",
    "Muon",
    "RankwiseError",
    "Ray",
    "Sweep",
    "Training",
    "activate",
    "base_state_dict",
    "by_row",
    "combine",
    "disabled",
    "eject",
    "extract",
    "inject",
    "load_adapter",
    "load_loralib",
    "merge",
    "predict",
    "push",
    "quantize",
    "ranks_by_layer",
    "register_layer_type",
    "rename",
    "resize",
    "save_adapter",
    "save_merged",
    "swap_adapter",
    "sweep",
    "sweep_trainer",
    "unmerge",
]

_HOMES = {
    "AdamW": "rankwise.pack.optimisers",
    "CountMetric": "rankwise.pack.counts",
    "LayerType": "rankwise.lora.layer_types",
    "LoRAConfig": "rankwise.lora.config",
    "LocalProcesses": "rankwise.sweeps.run.units.local",
    "ModelMetric": "rankwise.sweeps.model_metric",
    "Muon": "rankwise.pack.optimisers",
    "RankwiseError": "rankwise.errors",
    "Ray": "rankwise.sweeps.run.units.on_ray",
    "SGD": "rankwise.pack.optimisers",
    "Sweep": "rankwise.api",
    "Training": "rankwise.train.settings",
    "activate": "rankwise.lora.active",
    "base_state_dict": "rankwise.lora.base.state",
    "by_row": "rankwise.lora.active",
    "combine": "rankwise.surgery.combining",
    "disabled": "rankwise.lora.active",
    "eject": "rankwise.lora.inject",
    "extract": "rankwise.surgery.extracting",
    "inject": "rankwise.lora.inject",
    "load_adapter": "rankwise.adapter_files",
    "load_loralib": "rankwise.adapter_files",
    "merge": "rankwise.lora.merge",
    "predict": "rankwise.tasks.text.use.prediction",
    "push": "rankwise.tasks.text.card.push",
    "quantize": "rankwise.quantising",
    "ranks_by_layer": "rankwise.surgery.layer_ranks",
    "register_layer_type": "rankwise.lora.layer_types",
    "rename": "rankwise.lora.active",
    "resize": "rankwise.surgery.resizing",
    "save_adapter": "rankwise.adapter_files",
    "save_merged": "rankwise.adapter_files",
    "swap_adapter": "rankwise.adapter_files",
    "sweep": "rankwise.api",
    "sweep_trainer": "rankwise.tasks.trainers.sweep_trainer",
    "unmerge": "rankwise.lora.merge",
}
"""Public name -> the module that holds it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # Not what this file imports for itself, nor the packages that happen to be loaded.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
