"""Low-rank adaptation: the method. Start with `maths.py`, which holds the paper's equations."""

from rankwise.lora.active import activate, by_row, disabled, rename
from rankwise.lora.base.state import base_state_dict
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, eject, inject
from rankwise.lora.layer_types import LayerType, register_layer_type
from rankwise.lora.merge import MergeReport, merge, unmerge
from rankwise.lora.parameters import adapter_tensors, count_parameters, trainable_parameters
from rankwise.lora.targets.find import find_targets
from rankwise.lora.targets.target import LeftOut, Target, Targets

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
