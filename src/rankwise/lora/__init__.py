"""Low-rank adaptation: the method. Start with `maths.py`, which holds the paper's equations."""

from rankwise.lora.base_state import base_state_dict
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, eject, inject
from rankwise.lora.layer_types import LayerType, register_layer_type
from rankwise.lora.merge import MergeReport, merge, unmerge
from rankwise.lora.named import activate, by_row, disabled, rename
from rankwise.lora.parameters import adapter_tensors, count_parameters, trainable_parameters
from rankwise.lora.target import LeftOut, Target, Targets
from rankwise.lora.targets import find_targets

__all__ = [
    "LayerType",
    "LeftOut",
    "LoRAConfig",
    "MergeReport",
    "Report",
    "Target",
    "Targets",
    "activate",
    "adapter_tensors",
    "base_state_dict",
    "by_row",
    "count_parameters",
    "disabled",
    "eject",
    "find_targets",
    "inject",
    "merge",
    "register_layer_type",
    "rename",
    "trainable_parameters",
    "unmerge",
]
