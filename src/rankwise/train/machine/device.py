"""Choose the device."""

import torch

from rankwise.errors import ConfigError

AUTO = "auto"
"""CUDA where there is a GPU for it, else MPS, else the CPU."""


def find_device(name: str) -> torch.device:
    """The device by its name; of "auto", the first of CUDA, MPS and the CPU that is available.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == AUTO:
        return next(torch.device(kind) for kind in ("cuda", "mps", "cpu") if kind in _kinds())
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        known = ", ".join(reversed(_kinds()))
        raise ConfigError(f'There is no device "{name}" here; there is {known}.') from None
    return device


def device_note(name: str, device: torch.device) -> list[str]:
    """Report the chosen device where the user left it open.

    Args:
        name: What the user gave.
        device: What `find_device` returned for it.

    Examples:
        >>> device_note("auto", torch.device("cpu"))
        ['Computing on the CPU (--device auto: there is no CUDA or MPS device).']
        >>> device_note("cpu", torch.device("cpu"))
        []
    """
    if name != AUTO:
        return []
    if device.type == "cuda":
        return [f"Computing on the GPU {torch.cuda.get_device_name(device)} (--device auto)."]
    if device.type == "mps":
        return ["Computing on mps (--device auto). Rankwise is untested there; --device cpu is the safe choice."]
    return ["Computing on the CPU (--device auto: there is no CUDA or MPS device)."]


def _kinds() -> list[str]:
    """The kinds of devices that are available here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, there in available.items() if there]
