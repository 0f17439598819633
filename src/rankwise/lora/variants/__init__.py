"""Variants of the method, in one table: a new one is one new file and one line here.

Its file declares the tensors of an adapter in one layer, and what is made of them; everything else, from the hook to
packs and PEFT's files, follows these declarations.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rankwise.lora.inits import INITS
from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.dora import DORA
from rankwise.lora.variants.from_start import from_start
from rankwise.lora.variants.lora import LORA
from rankwise.lora.variants.lora_fa import LORA_FA
from rankwise.lora.variants.variant import Site, Sizes, Variant, VariantTensor, VariantTensors
from rankwise.lora.variants.vera import VERA

__all__ = [
    "FORMS",
    "LORA",
    "VARIANTS",
    "Site",
    "Sizes",
    "Variant",
    "VariantTensor",
    "VariantTensors",
    "form_name",
]

VARIANTS: dict[str, Variant] = {"lora": LORA, "lora-fa": LORA_FA, "dora": DORA, "vera": VERA}
"""The variant by the name that `LoRAConfig.variant` gives it."""

_FROM_START = {f"{name} from start": from_start(variant) for name, variant in VARIANTS.items() if not variant.shared}


class _Forms(Mapping[str, Variant]):
    """Both tables as one, as a ChainMap is, in a fifth of its time: every layer is looked up several times."""

    def __getitem__(self, name: str) -> Variant:
        found = VARIANTS.get(name)
        return _FROM_START[name] if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter({**VARIANTS, **_FROM_START})

    def __len__(self) -> int:
        return len({**VARIANTS, **_FROM_START})


FORMS: Mapping[str, Variant] = _Forms()
"""What an adapter is in a layer: a variant, or one whose start is taken off the base."""


def form_name(config: Any, kind: LayerType) -> str:
    """Return what an adapter is in one layer: single rows of a weight are added plainly in all variants.

    Args:
        config: A `LoRAConfig`.
        kind: The layer as the adapter sees it.

    Examples:
        >>> from types import SimpleNamespace
        >>> from rankwise.lora.layer_types import EMBEDDING
        >>> form_name(SimpleNamespace(variant="dora", init="kaiming"), EMBEDDING)
        'dora'
        >>> form_name(SimpleNamespace(variant="dora", init="pissa"), EMBEDDING)
        'dora from start'
    """
    if kind.tokens:
        return "lora"
    return f"{config.variant} from start" if INITS[config.init].moves else config.variant
