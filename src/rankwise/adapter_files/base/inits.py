"""Initialisations in PEFT's settings, and what they say of the base under a file's A and B."""

from collections.abc import Mapping
from typing import Any

FRESH: dict[Any, str] = {
    True: "kaiming",
    None: "kaiming",
    "gaussian": "gaussian",
    "pissa": "pissa",
    "olora": "olora",
    "orthogonal": "orthogonal",
    "eva": "eva",
    "loftq": "loftq",
    "lora_ga": "lora-ga",
}
"""`init_lora_weights` -> name in `rankwise.lora.inits.INITS`, for an adapter that is to start with it."""

BASE_STAYS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` whose A and B stand over the base as it is."""

BASE_MOVES = ("pissa", "olora")
"""Values with which PEFT takes s B0 A0 off the base's weight when it loads a file, B0 and A0 following from the weight:
the residual form. Other values move the base by what no file holds, and can't be read."""


def taken_off(fields: Mapping[str, Any]) -> str | None:
    """Return the initialisation, as `INITS` has it, whose start is taken off the base of a file; None where it isn't.

    Examples:
        >>> taken_off({"init_lora_weights": "pissa"}), taken_off({"init_lora_weights": True}), taken_off({})
        ('pissa', None, None)
    """
    value = fields.get("init_lora_weights")
    return FRESH[value] if isinstance(value, str) and value in BASE_MOVES else None


def value_to_write(extra: Mapping[str, Any]) -> Any:
    """Return `init_lora_weights` of a file of ours, whose A and B stand over the base as it is.

    Args:
        extra: What the file that the adapter came from said.

    Examples:
        >>> [value_to_write({"init_lora_weights": value}) for value in (None, "pissa", "eva")]
        [None, True, 'eva']
    """
    value = extra.get("init_lora_weights", True)
    return value if value in BASE_STAYS else True
