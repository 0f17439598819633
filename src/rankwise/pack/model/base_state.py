"""Remember a base's tensors, to detect forward passes that change them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.base.checksum import checksum

SMALL, SMALL_BUFFER = 1 << 16, 1 << 22
"""Numbers up to which a parameter and a buffer are remembered whole, so that they can be put back."""


@dataclass
class _Kept:
    """One parameter or buffer.

    Args:
        name: Its path.
        owner: The dictionary of the module that has it.
        key: Its name there.
        tensor: The tensor.
        mark: What changes when something is written to it.
        kind: Its type and device.
        copy: Its numbers; None of a large one.
        sum: A number of its bits; None of a small one.
        is_buffer: Whether it is a buffer.
    """

    name: str
    owner: dict[str, Any]
    key: str
    tensor: Tensor
    mark: tuple[int, int]
    kind: tuple[torch.dtype, torch.device]
    copy: Tensor | None
    sum: Tensor | None
    is_buffer: bool


class BaseState:
    """The parameters and buffers of a model: small ones whole, checksums of large ones.

    Quantised weights and those without data are passed over: their layers and other tools exchange them.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[_Kept] = []
        for path, module in model.named_modules():
            for owner, is_buffer in ((module._parameters, False), (module._buffers, True)):  # pyright: ignore[reportPrivateUsage]
                for key, tensor in owner.items():
                    if tensor is None or tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
                        continue
                    name = f"{path}.{key}" if path else key
                    small = tensor.numel() <= (SMALL_BUFFER if is_buffer else SMALL)
                    copy, total = (tensor.detach().clone(), None) if small else (None, checksum(tensor))
                    kind = tensor.dtype, tensor.device
                    self._kept.append(_Kept(name, owner, key, tensor, _mark(tensor), kind, copy, total, is_buffer))

    def check(self, *, training: bool, quick: bool = True) -> None:
        """Restore what forward passes have changed, and raise.

        Args:
            training: In which mode the passes were, for the message.
            quick: Whether numbers are compared only where something tells that they were written to; what is written
                through `.data` isn't told.

        Raises:
            PackError: They have changed a parameter or a buffer.
        """
        found: _Kept | None = None
        for kept in self._kept:
            now, tensor = kept.owner.get(kept.key), kept.tensor
            # As `_mark` has it, without a call: this runs for every parameter at every step.
            mark = 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()
            if quick and now is tensor and mark == kept.mark:
                continue
            # Of another shape, or gone, it is a cache.
            if now is not None and now.shape == kept.tensor.shape and not _holds(now, kept):
                found = found or kept
            elif kept.is_buffer and now is not kept.tensor:
                continue
            kept.mark = _mark(kept.tensor)
        if found is None:
            return
        self.restore()
        path = found.name.rpartition(".")[0]
        what, kind = "buffer" if found.is_buffer else "parameter", type(self._model.get_submodule(path)).__name__
        left = "" if found.copy is not None else " It is too large to have been put back: load the base again."
        raise PackError(
            f'A forward pass in {"train" if training else "eval"} mode changes the {what} "{found.name}" ({kind}). All '
            "adapters would write to it, and the base would not stay what it is. Freeze it (put the module into "
            f"eval mode in its own train method, or switch its updates off), or keep it out of the model.{left}"
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the tensors that are remembered completely."""
        for kept in self._kept:
            if kept.copy is None:
                continue
            if not _holds(kept.tensor, kept):
                kept.tensor.copy_(kept.copy)
            kept.owner[kept.key] = kept.tensor
            kept.mark = _mark(kept.tensor)


def _mark(tensor: Tensor) -> tuple[int, int]:
    return (0 if tensor.is_inference() else tensor._version), tensor.data_ptr()


def _holds(tensor: Tensor, kept: _Kept) -> bool:
    if (tensor.dtype, tensor.device) != kept.kind:
        return True  # moved or cast as a whole
    if kept.copy is None:
        return kept.sum is not None and torch.equal(checksum(tensor), kept.sum)
    now, then = tensor.detach(), kept.copy
    return torch.equal(now, then) or bool(((now == then) | ((now != now) & (then != then))).all())
