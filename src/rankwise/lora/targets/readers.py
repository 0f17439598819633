"""Find the module whose forward reads a weight without calling its layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankwise.lora.layer_types import LayerType, acts_on_output, layer_type_of
from rankwise.lora.layer_types.parameter import parameter_type
from rankwise.lora.targets.modules import submodule

_OWNERS: tuple[tuple[type[nn.Module], bool], ...] = (
    (nn.MultiheadAttention, True),
    (nn.RNNBase, False),
    (nn.RNNCellBase, False),
)
"""Modules whose matrices are adapted with them, when the module is named; and whether "all-linear" takes them."""


@dataclass(frozen=True)
class Reader:
    """The module during whose forward a weight is read.

    Args:
        module: The module.
        below: Path from it to the layer that has the weight; empty where that is the module itself.
    """

    module: nn.Module
    below: str


@dataclass(frozen=True)
class Weight:
    """A weight that can be adapted.

    Args:
        module: The module that has it.
        names: Its paths: those of the module for the weight of a layer, else with the parameter's name.
        parameter: Its name in the module.
        layer_type: How it is adapted; None where it can't be.
        also: Further names by which it is meant: the path of an attention means its projections.
    """

    module: nn.Module
    names: list[str]
    parameter: str
    layer_type: LayerType | None
    also: tuple[str, ...] = ()

    @property
    def tensor(self) -> nn.Parameter | None:
        """The parameter; None where it is computed (parametrised)."""
        return self.module._parameters.get(self.parameter)  # pyright: ignore[reportPrivateUsage]


def layers_and_owned(modules: Sequence[tuple[nn.Module, list[str]]]) -> Iterator[Weight]:
    """Yield every module as a layer, but attentions and RNNs as the matrices they have."""
    attentions = {name for module, names in modules if isinstance(module, nn.MultiheadAttention) for name in names}
    for module, names in modules:
        owner = next((linear for cls, linear in _OWNERS if isinstance(module, cls)), None)
        if owner is None:
            parents = [name.rpartition(".")[0] for name in names]
            also = tuple(parent for parent in parents if parent in attentions)
            # The modules of a parametrisation have no weight, and a number for a name.
            if not any(".parametrizations." in f".{name}" for name in names):
                yield Weight(module, names, "weight", layer_type_of(module), also)
            continue
        for parameter in _matrices(module):
            own = [_joined(name, parameter) for name in names]
            yield Weight(module, own, parameter, parameter_type(parameter, owner), tuple(names))


def other_parameters(modules: Sequence[tuple[nn.Module, list[str]]]) -> Iterator[Weight]:
    """Yield the matrices, and stacks of them, that are neither a layer's weight nor an attention's or RNN's."""
    for module, names in modules:
        if any(isinstance(module, cls) for cls, _ in _OWNERS):
            continue
        taken = {"weight"} if layer_type_of(module) is not None else set[str]()
        for parameter in _matrices(module):
            if parameter not in taken:
                own = [_joined(name, parameter) for name in names]
                yield Weight(module, own, parameter, parameter_type(parameter))


_ROWS = {"bias_k", "bias_v"}
"""An attention's vectors, stored as (1, 1, n): one more key and value, no matrices."""


def _matrices(module: nn.Module) -> list[str]:
    parameters: Mapping[str, Tensor | None] = module._parameters  # pyright: ignore[reportPrivateUsage]
    return [
        name
        for name, tensor in parameters.items()
        if tensor is not None
        and not is_lazy(tensor)
        and tensor.ndim in (2, 3)
        and tensor.is_floating_point()
        and 0 not in tensor.shape
        and not (name in _ROWS and isinstance(module, nn.MultiheadAttention))
    ]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def reader_of(model: nn.Module, weight: Weight) -> Reader | None:
    """Return the module that reads a weight, or None for a layer that is called and whose update can be added.

    A layer whose class has its own forward may do more with the weight than the layer type says (standardise it,
    scale the output), so it is the reader of its own weight too.

    Args:
        model: The model.
        weight: The weight.
    """
    name = weight.names[0]
    own = weight.layer_type is not None and weight.layer_type.name == "Parameter"
    layer = name.rpartition(".")[0] if own else name
    by_row = not own and weight.layer_type is not None
    if by_row and acts_on_output(weight.module):
        return None
    path = layer
    module = weight.module
    while path and not _is_reader(module, by_row, module is weight.module):
        path = path.rpartition(".")[0]
        module = submodule(model, path)
    return Reader(module, layer.removeprefix(path).removeprefix("."))


def _is_reader(module: nn.Module, by_row: bool, own: bool) -> bool:
    if own and by_row and isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return type(module).forward is not nn.Module.forward  # containers are never called


def show_tensor(layer: nn.Module, name: str, before: Tensor, after: Tensor | None) -> None:
    """Shadow a layer's parameter with a tensor; None shows the parameter again.

    RNNs also keep their weights in a list and read that.
    """
    if after is not None:
        layer.__dict__[name] = after
    listed: list[Tensor] | None = layer.__dict__.get("_flat_weights")
    if listed is not None:
        now = getattr(layer, name)
        layer.__dict__["_flat_weights"] = [now if weight is before else weight for weight in listed]
