"""An adapter's replacements of a layer's own parameters and buffers."""

from typing import Any

from rankwise.lora.offloaded import data_of
from rankwise.lora.targets.modules import Adapter


class Replacement(Adapter):
    """One adapter's replacements of a layer's own parameters and buffers, under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep_own)

    def tensors(self) -> dict[str, Any]:
        """Return them by name, with their numbers where these have been offloaded."""
        tensors: dict[str, Any] = {**self._parameters, **self._buffers}
        if any(tensor is not None and tensor.is_meta for tensor in tensors.values()):
            return {name: data_of(self, name) for name in tensors}
        return tensors


def _keep_own(own: Replacement, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Keep what the base's own checkpoint lacks, so that it loads strictly."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in {**own._parameters, **own._buffers}.items()}  # pyright: ignore[reportPrivateUsage]
    if not any(key in state_dict for key in tensors):
        state_dict.update(tensors)
