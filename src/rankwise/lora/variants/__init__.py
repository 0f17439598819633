"""Variants of the method, in one table: a new one is one new file and one line here.

Its file declares the tensors of an adapter in one layer, and what is made of them; everything else, from the hook to
packs and PEFT's files, follows these declarations.
"""

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.dora import DORA
from rankwise.lora.variants.lora import LORA
from rankwise.lora.variants.variant import Site, Sizes, Variant, VariantTensor, VariantTensors
from rankwise.lora.variants.vera import VERA

__all__ = [
    "LORA",
    "VARIANTS",
    "Site",
    "Sizes",
    "Variant",
    "VariantTensor",
    "VariantTensors",
    "variant_name",
]

VARIANTS: dict[str, Variant] = {"lora": LORA, "dora": DORA, "vera": VERA}
"""The variant by the name that `LoRAConfig.variant` gives it."""


def variant_name(name: str, kind: LayerType) -> str:
    """Return the variant that an adapter's is in one layer: single rows of a weight are added plainly in all.

    Examples:
        >>> from rankwise.lora.layer_types import EMBEDDING
        >>> variant_name("dora", EMBEDDING)
        'dora'
    """
    return "lora" if kind.tokens else name
