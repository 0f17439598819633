"""The named adapters of one weight: their tensors, scales and settings, and which of them act."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer.asking import stop_asking
from rankwise.lora.layer.checkpoint import Checkpointed
from rankwise.lora.layer_types import LayerType
from rankwise.lora.layer_types.quantised import with_weight_of
from rankwise.lora.offloaded import data_of, gathered, register
from rankwise.lora.targets.ties import flip
from rankwise.lora.variants import VARIANTS, Variant, variant_name

NO_ROWS: Mapping[str, LayerType] = MappingProxyType({})


@dataclass(frozen=True)
class Attached:
    """What an adapter was attached to.

    Args:
        adapted: Paths of the adapted weights.
        whole: Paths of the parameters and buffers that it has in the base's place.
    """

    adapted: tuple[str, ...]
    whole: tuple[str, ...]


class Holding(Checkpointed):
    """The named adapters of one weight; `LoRA` lets them act.

    Args:
        layer: The layer to adapt. It is not kept.
        layer_type: Its row in `LAYER_TYPES`.
        parameter: Name of the weight.
    """

    # Defaults of the class, not set by __init__: nn.Module makes every assignment dear, and models have many layers.
    active: tuple[str, ...] = ()
    varied: bool = False
    """Whether an adapter is of another variant than LoRA itself, or on slices."""
    rows: Mapping[str, LayerType] = NO_ROWS
    """Rows of adapters that see the layer in a way of their own."""
    merged: tuple[str, ...] = ()
    """Adapters that stand in the layer's weight now; the hook then adds nothing."""
    base_weight: Tensor | None = None
    """The weight's bits from before merging."""
    flipped: tuple[str, ...] = ()
    """Adapters that belong to a module which has this layer's weight transposed: `pair` turns them round."""
    attached: Mapping[str, Attached] = MappingProxyType({})
    """Adapter -> all that it was attached to, here and elsewhere in the model."""
    joined: Mapping[str, tuple[Checkpointed]] = MappingProxyType({})
    """Adapter -> the adapters of the other layer whose A and B it has here: those of a shared weight."""
    parked: "dict[str, tuple[str, ...]]"
    """Adapter that doesn't act -> which of its tensors ("A", "B", ...) ask for a gradient when it does."""
    parameter: str = "weight"
    """Name of the weight in the layer."""

    def __init__(self, layer: nn.Module, layer_type: LayerType, parameter: str = "weight") -> None:
        super().__init__()
        self.layer_type = layer_type
        if parameter != "weight":
            self.parameter = parameter
        self.A = nn.ParameterDict()
        self.B = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self.parked = {}
        if not layer.training:
            self.eval()

    def add(
        self,
        name: str,
        A: Tensor,
        B: Tensor,
        scale: float,
        config: LoRAConfig,
        layer: nn.Module,
        own: Mapping[str, Tensor] | None = None,
        row: LayerType | None = None,
    ) -> None:
        """Take in an adapter: in float32, or float64 over a float64 weight, and on the weight's device.

        Over a weight without data (on the meta device) it lies on the CPU.

        Args:
            name: Its name.
            A, B: As matrices.
            scale: s.
            config: Kept with it.
            layer: The layer.
            own: What its variant trains beside A and B; None lets the variant make it.
            row: How it sees the layer, where that differs from the other adapters' way (slices).
        """
        row = row or self.layer_type
        weight, variant = self.weight(layer), VARIANTS[variant_name(config.variant, row)]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        device = torch.device("cpu") if weight.is_meta else weight.device
        # Without numbers there is nothing to train, and DistributedDataParallel would wait for a gradient.
        register(self.A, name, nn.Parameter(A.detach().to(device, dtype), requires_grad=A.numel() > 0))
        register(self.B, name, nn.Parameter(B.detach().to(device, dtype)))
        self.scale[name], self.configs[name] = scale, config
        if row.partial:
            self._see_as(name, row)
        if variant.tensors:
            if own is None:
                with torch.no_grad():
                    own = variant.init(self.layer_type, layer, self.A[name], self.B[name], scale)
            for key in variant.tensors:
                self._keep(key, name, nn.Parameter(own[key].detach().to(device, dtype)))

    def _see_as(self, name: str, row: LayerType) -> None:
        """Let an adapter see the layer in a way of its own."""
        self.varied, self.rows = True, {**self.rows, name: row}

    def _keep(self, key: str, name: str, tensor: nn.Parameter) -> None:
        """Take in what an adapter trains beside A and B."""
        self.varied = True
        if key not in self._modules:
            self.add_module(key, nn.ParameterDict())
        register(self.get_submodule(key), name, tensor)

    def own(self, name: str) -> dict[str, Any]:
        """Return what an adapter trains beside A and B."""
        return {key: self.get_submodule(key)._parameters[name] for key in self.variant_of(name).tensors}

    def kind_of(self, name: str) -> LayerType:
        """Return how an adapter sees the layer."""
        return self.rows.get(name, self.layer_type)

    def variant_of(self, name: str) -> Variant:
        """Return what an adapter makes of A and B here."""
        return VARIANTS[variant_name(self.configs[name].variant, self.kind_of(name))]

    @property
    def is_parameter(self) -> bool:
        """Whether the weight is a parameter of a module that is no layer of the table."""
        return self.layer_type.name == "Parameter"

    def weight(self, layer: nn.Module) -> Tensor:
        """Return the layer's weight, whether it is a parameter or computed (parametrised)."""
        return getattr(layer, self.parameter)

    def row_now(self, layer: nn.Module) -> LayerType:
        """Return the layer's row as its weight is now: torchao may have quantised it since."""
        return with_weight_of(self.layer_type, type(self.weight(layer)))

    def join(self, name: str, other: "Holding", flipped: bool, row: LayerType) -> None:
        """Use the adapter of another layer that has this one's weight: its very A and B."""
        if row.partial:
            self._see_as(name, row)
        register(self.A, name, other.A[name])
        register(self.B, name, other.B[name])
        self.scale[name], self.configs[name] = other.scale[name], other.configs[name]
        self.flipped += (name,) if flipped else ()
        self.joined = {**self.joined, name: (other,)}
        for key, tensor in other.own(name).items():
            self._keep(key, name, tensor)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return A and B as this layer uses them."""
        pair = self.A[name], self.B[name]
        if pair[0].is_meta or pair[1].is_meta:
            pair = self.fetched("A", name), self.fetched("B", name)
        pair = gathered(pair[0]), gathered(pair[1])
        return flip(*pair) if name in self.flipped else pair

    def fetched(self, key: str, name: str) -> Tensor:
        """Return a tensor that has been offloaded; checkpoints have those of layers that share an adapter once."""
        source: Checkpointed = self
        while name in source.joined:
            source = source.joined[name][0]
        return gathered(data_of(source.get_submodule(key), name))

    def brought(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return A and B on the device of the layer's input; without data they can only go to the meta device."""
        if device.type == "meta":
            pair = self.A[name].to(device), self.B[name].to(device)
            return flip(*pair) if name in self.flipped else pair
        A, B = self.pair(name)
        return A.to(device), B.to(device)

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        for key in self.own(name):
            del self.get_submodule(key)._parameters[name]
        for kept in (self.A, self.B, self.scale, self.configs):
            del kept[name]
        if name in self.rows:
            self.rows = {other: row for other, row in self.rows.items() if other != name}
        self.joined = {other: source for other, source in self.joined.items() if other != name}
        self.parked.pop(name, None)
        self.active = tuple(active for active in self.active if active != name)
        self.flipped = tuple(flipped for flipped in self.flipped if flipped != name)

    @property
    def names(self) -> list[str]:
        """Return the adapters."""
        return list(self.scale)

    def keys_of(self, name: str) -> dict[str, Any]:
        """Return an adapter's tensors by their keys below this module."""
        return {
            f"A.{name}": self.A._parameters[name],
            f"B.{name}": self.B._parameters[name],
            **{f"{key}.{name}": tensor for key, tensor in self.own(name).items()},
        }

    def switch(self, names: tuple[str, ...]) -> None:
        """Let these adapters act. The others' tensors ask for no gradient meanwhile."""
        self.active = names
        for name in self.scale:
            tensors = {key.removesuffix(f".{name}"): tensor for key, tensor in self.keys_of(name).items()}
            if name in names:
                for key in self.parked.pop(name, ()):
                    tensors[key].requires_grad_(True)
                continue
            if name not in self.parked:
                asking = tuple(key for key, tensor in tensors.items() if tensor.requires_grad)
                self.parked = {**self.parked, name: asking}
            for key in self.parked[name]:
                stop_asking(tensors[key])
