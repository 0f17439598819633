"""The named adapters of one weight: their tensors, scales and settings, and which are active."""

from collections.abc import Collection, Mapping
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
from rankwise.lora.variants import FORMS, LORA, Variant, VariantTensors, form_name

NO_ROWS: Mapping[str, LayerType] = MappingProxyType({})


@dataclass(frozen=True)
class Attached:
    """The weights and parameters that an adapter was attached to.

    Args:
        adapted: Paths of the adapted weights.
        replacements: Paths of the parameters and buffers that it replaces.
    """

    adapted: tuple[str, ...]
    replacements: tuple[str, ...]


class Holding(Checkpointed):
    """The named adapters of one weight; `LoRA` applies them.

    Args:
        layer: The layer to adapt. It is not kept.
        layer_type: Its entry in `LAYER_TYPES`.
        parameter: Name of the weight.
    """

    # Class defaults, and in methods `__dict__`: assignments to an nn.Module are slow, and models have many layers.
    active: tuple[str, ...] = ()
    varied: bool = False
    """Whether an adapter is of another variant than LoRA itself, or on slices."""
    kinds: Mapping[str, LayerType] = NO_ROWS
    """Layer types of adapters that see the layer in their own way."""
    merged: tuple[str, ...] = ()
    """Adapters merged into the layer's weight now; the hook then adds nothing."""
    base_weight: Tensor | None = None
    """The weight's bits from before merging."""
    flipped: tuple[str, ...] = ()
    """Adapters of a module with this layer's weight transposed: `pair` transposes them."""
    attached: Mapping[str, Attached] = MappingProxyType({})
    """Adapter -> everything that it was attached to, here and elsewhere in the model."""
    joined: Mapping[str, tuple[Checkpointed]] = MappingProxyType({})
    """Adapter -> the adapters of the other layer whose A and B it has here: those of a shared weight."""
    parked: "dict[str, tuple[str, ...]]"
    """Inactive adapter -> its tensors ("A", "B", ...) that require a gradient when it is active."""
    parameter: str = "weight"
    """Name of the weight in the layer."""
    layer_type: LayerType
    scale: dict[str, float]
    """Adapter -> its s."""
    configs: dict[str, LoRAConfig]
    A: nn.ParameterDict
    B: nn.ParameterDict

    def __init__(self, layer: nn.Module, layer_type: LayerType, parameter: str = "weight") -> None:
        super().__init__()
        own = self.__dict__
        own["layer_type"], own["scale"], own["configs"], own["parked"] = layer_type, {}, {}, {}
        if parameter != "weight":
            own["parameter"] = parameter
        for key in ("A", "B"):
            self._modules[key] = nn.ParameterDict()
        if not layer.training:
            self.eval()

    def add(
        self,
        name: str,
        tensors: VariantTensors,
        scale: float,
        config: LoRAConfig,
        layer: nn.Module,
        kind: LayerType | None = None,
    ) -> None:
        """Add an adapter, in float32 (float64 over a float64 weight) and on the weight's device.

        Over a weight without data (on the meta device) it lies on the CPU.

        Args:
            name: Its name.
            tensors: Its variant's tensors in a layer; A and B as matrices. Shared ones are not copied.
            scale: s.
            config: Kept with it.
            layer: The layer.
            kind: Type that it sees the layer as, where this differs from the other adapters' (slices).
        """
        kind = kind or self.layer_type
        weight, variant = self.weight(layer), FORMS[form_name(config, kind)]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        device = torch.device("cpu") if weight.is_meta else weight.device
        self.scale[name], self.configs[name] = scale, config
        if kind.partial:
            self._see_as(name, kind)
        if variant is not LORA:
            self.varied = True
        for declared in variant.tensors:
            tensor = tensors[declared.name]
            if not declared.shared:
                # A tensor without values can't be trained, and DistributedDataParallel would wait for its gradient.
                trained = declared.trained and tensor.numel() > 0
                tensor = nn.Parameter(tensor.detach().to(device, dtype), requires_grad=trained)
            self._hold(declared.name, name, tensor)

    def _see_as(self, name: str, kind: LayerType) -> None:
        """Let an adapter see the layer in its own way."""
        self.varied, self.kinds = True, {**self.kinds, name: kind}

    def _hold(self, key: str, name: str, tensor: Any) -> None:
        """Add a tensor of an adapter."""
        held: Any = self._modules.get(key)
        if held is None:
            held = self._modules[key] = nn.ParameterDict()
        register(held, name, tensor)

    def parameters_of(self, name: str) -> dict[str, Any]:
        """Return an adapter's parameters; None where they are gone."""
        held: dict[str, Any] = self._modules
        return {declared.name: held[declared.name]._parameters.get(name) for declared in self.variant_of(name).tensors}

    def trained(self, name: str) -> list[Any]:
        """Return the parameters that an adapter trains here, or their stand-ins inside functional_call."""
        held, declared = self.parameters_of(name), self.variant_of(name).trained
        return [held[it.name] for it in declared if held[it.name] is not None and held[it.name].numel()]

    def kind_of(self, name: str) -> LayerType:
        """Return the layer type that an adapter sees."""
        return self.kinds.get(name, self.layer_type)

    def variant_of(self, name: str) -> Variant:
        """Return an adapter's variant here."""
        return FORMS[form_name(self.configs[name], self.kinds.get(name, self.layer_type))]

    def form_of(self, name: str) -> str:
        """Return the name of what an adapter is here, for all of the layer's outputs or a part of them."""
        return form_name(self.configs[name], self.kind_of(name))

    @property
    def is_parameter(self) -> bool:
        """Whether the weight's module is not a layer of the table."""
        return self.layer_type.name == "Parameter"

    def weight(self, layer: nn.Module) -> Tensor:
        """Return the layer's weight, whether it is a parameter or computed (parametrised)."""
        return getattr(layer, self.parameter)

    def row_now(self, layer: nn.Module) -> LayerType:
        """Return the layer type for the weight as it is now: torchao may have quantised it since."""
        return with_weight_of(self.layer_type, type(self.weight(layer)))

    def join(self, name: str, other: "Holding", flipped: bool, kind: LayerType) -> None:
        """Share A and B of an adapter with another layer that has the same weight."""
        if kind.partial:
            self._see_as(name, kind)
        self.scale[name], self.configs[name] = other.scale[name], other.configs[name]
        self.flipped += (name,) if flipped else ()
        self.joined = {**self.joined, name: (other,)}
        self.varied = self.varied or other.varied
        for key, tensor in other.parameters_of(name).items():
            self._hold(key, name, tensor)

    def tensors(self, name: str, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return an adapter's tensors as this layer uses them.

        Args:
            name: The adapter.
            device: Where to; None for where they are, or where the shared tensors are. Without data they can
                only go to the meta device.
        """
        held: dict[str, Tensor] = self.parameters_of(name)
        if device is None and name not in self.flipped and _lie_together(held.values()):
            return held
        if device is None or device.type != "meta":
            if any(tensor.is_meta for tensor in held.values()):
                held = {key: self.fetched(key, name) for key in held}
            held = {key: gathered(tensor) for key, tensor in held.items()}
        if device is None:
            shared = {declared.name for declared in self.variant_of(name).shared}
            device = next((tensor.device for key, tensor in held.items() if key not in shared), None)
        held = {key: tensor if tensor.device == device else tensor.to(device) for key, tensor in held.items()}
        if name in self.flipped:
            A, B = flip(held["A"], held["B"])
            return {**held, "A": A, "B": B}
        return held

    def fetched(self, key: str, name: str) -> Tensor:
        """Return an offloaded tensor; checkpoints hold an adapter shared by layers only once."""
        source: Checkpointed = self
        while name in source.joined:
            source = source.joined[name][0]
        return gathered(data_of(source.get_submodule(key), name))

    def brought(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return A and B on the device of the layer's input."""
        tensors = self.tensors(name, device)
        return tensors["A"], tensors["B"]

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        for key in self.parameters_of(name):
            del self.get_submodule(key)._parameters[name]
        for kept in (self.scale, self.configs):
            del kept[name]
        if name in self.kinds:
            self.kinds = {other: kind for other, kind in self.kinds.items() if other != name}
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
        return {f"{key}.{name}": tensor for key, tensor in self.parameters_of(name).items()}

    def switch(self, names: tuple[str, ...]) -> None:
        """Activate these adapters. The others' tensors then require no gradient."""
        self.__dict__["active"] = names
        for name in self.scale:
            if name in names and name not in self.parked:
                continue
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


def _lie_together(tensors: Collection[Tensor]) -> bool:
    """Tell whether all are plain parameters with data on one device."""
    return all(type(t) is nn.Parameter and not t.is_meta for t in tensors) and len({t.device for t in tensors}) == 1
