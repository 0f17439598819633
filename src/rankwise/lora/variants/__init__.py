"""Variants of the method, found through one table: a new one is one new file with three functions and one row here."""

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.dora import DORA
from rankwise.lora.variants.lora import LORA
from rankwise.lora.variants.variant import Variant, VariantTensors

__all__ = ["VARIANTS", "Variant", "VariantTensors", "variant_name"]

VARIANTS: dict[str, Variant] = {"lora": LORA, "dora": DORA}
"""The variant by the name that `LoRAConfig.variant` gives it."""


def variant_name(name: str, row: LayerType) -> str:
    """Return the variant that an adapter's is in one layer: single rows of a weight are added plainly in all.

    Examples:
        >>> from rankwise.lora.layer_types import EMBEDDING
        >>> variant_name("dora", EMBEDDING)
        'dora'
    """
    return "lora" if row.tokens else name
