"""Choose the precision from the user's setting and the device."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rankwise.errors import ConfigError, suggest
from rankwise.pack.precision import HALF, PRECISIONS, rounds, supported

AUTO = "auto"

CHOICES = (AUTO, *PRECISIONS)

IN_BFLOAT16 = "Products of linear layers ran in bfloat16, all else in float32 (--precision bf16)."
"""A report's note on runs in bf16."""

MEASURED_ROWS = 256
"""Rows of the products that are measured: as many as a small batch of short texts has tokens."""


def check_precision(name: str, dtype: str) -> None:
    """Refuse what is no precision, and one that the base's type rules out.

    Args:
        name: What the user gave.
        dtype: The type that the base is loaded in.

    Raises:
        ConfigError: It is refused.
    """
    if name not in CHOICES:
        raise ConfigError(f'--precision is "{name}"; it is one of {", ".join(CHOICES)}.{suggest(name, CHOICES)}')
    if dtype != "float32" and name != AUTO and (name, dtype) != ("bf16", "bfloat16"):
        raise ConfigError(
            f"--dtype {dtype} loads the base in {dtype}, and a base computes in its own type, so --precision {name} "
            "can't be had. Leave one of them out."
        )


def choose_precision(name: str, dtype: str, device: torch.device) -> str:
    """One of `PRECISIONS`.

    Args:
        name: What the user gave: one of `CHOICES`. "auto" takes bf16 on CUDA devices that have it, else float32.
        dtype: The type that the base is loaded in. Where it isn't float32, the base computes in it.
        device: Where.

    Raises:
        ConfigError: The device has no bfloat16 arithmetic, or `check_precision` refuses.

    Examples:
        >>> choose_precision("auto", "float32", torch.device("cpu"))
        'float32'
    """
    check_precision(name, dtype)
    if dtype != "float32" or name == "float32":
        return "float32"
    if name == AUTO:
        return "bf16" if device.type == "cuda" and supported(device) else "float32"
    if not supported(device):
        where = "This CPU has no AMX or AVX512-BF16" if device.type == "cpu" else f"{device} has no bfloat16 arithmetic"
        raise ConfigError(f"{where}, so --precision bf16 would be slower than float32; leave it out.")
    return "bf16"


def precision_note(name: str, chosen: str, model: nn.Module, device: torch.device) -> list[str]:
    """Report the chosen precision where the user left it open, or what bf16 would save.

    Args:
        name: What the user gave.
        chosen: What `choose_precision` returned for it.
        model: The base.
        device: Where it is.
    """
    if name != AUTO:
        return []
    if chosen == "bf16":
        return ["Products of linear layers run in bfloat16 (--precision auto); --precision float32 is exact."]
    layer = next((m for m in model.modules() if isinstance(m, nn.Linear) and rounds(m)), None)
    if device.type != "cpu" or not supported(device) or layer is None:
        return []
    times = speed_up(layer)
    if times < 1.2:
        return []
    return [f"--precision bf16 would run the products of linear layers {times:.1f} times as fast on this CPU."]


@torch.no_grad()
def speed_up(layer: nn.Linear) -> float:
    """The measured speedup of a layer's product in bfloat16."""
    x = torch.ones(MEASURED_ROWS, layer.in_features)
    half_x, half = x.to(HALF), layer.weight.to(HALF)
    ways: list[Callable[[], object]] = [lambda: F.linear(x, layer.weight), lambda: F.linear(half_x, half)]

    def seconds(run: Callable[[], object]) -> float:
        clock = time.process_time()
        for _ in range(4):
            run()
        return time.process_time() - clock

    for run in ways:
        run()
    # The least of each: what else runs on the machine only adds to a time.
    wide, narrow = map(min, zip(*([seconds(run) for run in ways] for _ in range(5)), strict=True))
    return wide / max(narrow, 1e-9)
