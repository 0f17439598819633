"""Adapters in `state_dict()`: each tensor once, even where layers share an adapter, and correct while merged.

While adapters are merged a layer's weight is W + delta, and A and B are in the checkpoint too. The base's own weight is
then written too (`lora.base_weight`), and loading into a model with adapters gives the layer that: delta would
count twice otherwise. A plain model loads W + delta and ignores the rest.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.targets.modules import Adapter, child_name

BASE_KEY = "base_weight"
"""End of the key of the base's weight, while adapters are merged; empty where merging freed it."""

FREED = (
    '"{}" was saved while merged, without the base\'s weight (keep_base=False, or a quantised layer). Load it into the '
    "plain model, or save it after unmerge."
)


class Checkpointed(Adapter):
    """The checkpoint methods of `LoRA`."""

    joined: "Mapping[str, tuple[Checkpointed]]"
    """Adapter -> the one whose A and B it has here, where layers share a weight."""
    merged: tuple[str, ...]
    base_weight: Tensor | None
    parameter: str

    def keys_of(self, name: str) -> dict[str, Any]:
        """Return an adapter's tensors by their keys below this module."""
        raise NotImplementedError

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As of any module, without what another layer's adapter has too."""
        state: Any = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        for name in self.joined:
            for key in self.keys_of(name):
                state.pop(f"{prefix}{key}", None)
        if self.merged:
            base = torch.empty(0, device="cpu") if self.base_weight is None else self.base_weight.detach()
            # Files refuse tensors that share memory, and layers with one weight have one copy of it.
            state[f"{prefix}{BASE_KEY}"] = base.clone() if self.joined else base
        return state

    def load_base(
        self,
        layer: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Before the layer loads a checkpoint: of one that was taken while merged it gets the base's weight."""
        base = state_dict.get(f"{prefix}{child_name(self.parameter)}.{BASE_KEY}")
        if base is None:
            return
        if base.numel():
            state_dict[f"{prefix}{self.parameter}"] = base
        else:
            error_msgs.append(FREED.format(f"{prefix}{self.parameter}"))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Keep A and B of an adapter that the checkpoint lacks, so that the base's own checkpoint loads strictly."""
        if self.merged:
            error_msgs.append(f"{prefix[:-1]} is merged into its layer; call unmerge before load_state_dict.")
        state_dict.pop(f"{prefix}{BASE_KEY}", None)
        for name in self.names:
            shared = self.joined.get(name)
            keys = {f"{prefix}{key}": tensor for key, tensor in self.keys_of(name).items()}
            if shared is not None:  # the other layer comes first, and may have got new parameters (assign=True)
                keys = {f"{prefix}{key}": tensor for key, tensor in shared[0].keys_of(name).items()}
                state_dict.update(keys)
            elif not any(key in state_dict for key in keys):
                state_dict.update(keys)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def names(self) -> list[str]:
        """Return the adapters."""
        raise NotImplementedError
