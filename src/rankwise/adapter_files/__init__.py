"""Adapter files in PEFT's format, both ways. Nothing else knows about PEFT."""

from rankwise.adapter_files.folder import read_adapter, write_adapter
from rankwise.adapter_files.loralib import load_loralib
from rankwise.adapter_files.merged import save_merged
from rankwise.adapter_files.model import load_adapter, save_adapter
from rankwise.adapter_files.swap import swap_adapter

__all__ = [
    "load_adapter",
    "load_loralib",
    "read_adapter",
    "save_adapter",
    "save_merged",
    "swap_adapter",
    "write_adapter",
]
