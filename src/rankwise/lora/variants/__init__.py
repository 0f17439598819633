"""Variants of the method, found through one table: a new one is one new file with three functions and one row here."""

from rankwise.lora.variants.dora import DORA
from rankwise.lora.variants.lora import LORA
from rankwise.lora.variants.variant import Own, Variant

__all__ = ["VARIANTS", "Own", "Variant"]

VARIANTS: dict[str, Variant] = {"lora": LORA, "dora": DORA}
"""The variant by the name that `LoRAConfig.variant` gives it."""
