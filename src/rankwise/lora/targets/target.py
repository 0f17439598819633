"""A weight to adapt, with the numbers of its adapter; what is left out, and why."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from rankwise.lora.layer_types import LayerType, layer_type_of
from rankwise.lora.layer_types.parameter import parameter_type
from rankwise.lora.targets.readers import Reader
from rankwise.lora.targets.ties import Tie
from rankwise.lora.variants import FORMS, Sizes


@dataclass(frozen=True)
class Target:
    """A weight to adapt, with the numbers of its adapter.

    Args:
        name: First path of the module in the model, "" where the model is the layer itself; for a parameter of an
            attention, an RNN or any other module the path of the parameter.
        module: The layer, or the module that has the parameter.
        layer_type: Its entry in `LAYER_TYPES`.
        d_in: Inputs.
        d_out: Outputs.
        r: Rank here.
        alpha: Alpha here.
        scale: s in h = W x + s B A x.
        aliases: Other paths of the same module, and those of its ties.
        ties: Other modules with the same weight, in which the adapter acts too.
        untie: Whether the module is to get a copy of a weight that it shares.
        parameter: Name of the weight in the module.
        reader: The module whose forward reads the weight; None where the layer is called, so that the update of
            its output can be added.
        variant: What the adapter is here: a name in `rankwise.lora.variants.FORMS`.
    """

    name: str
    module: nn.Module
    layer_type: LayerType
    d_in: int
    d_out: int
    r: int
    alpha: float
    scale: float
    aliases: tuple[str, ...] = ()
    ties: tuple[Tie, ...] = ()
    untie: bool = False
    parameter: str = "weight"
    reader: Reader | None = None
    variant: str = "lora"

    @property
    def parameters(self) -> int:
        """Trainable numbers: of LoRA r (d_in + d_out), for each matrix of a stack."""
        return sum(map(math.prod, FORMS[self.variant].shapes(self.sizes).values()))

    @property
    def sizes(self) -> Sizes:
        """The sizes that determine the shapes of the adapter's tensors."""
        outputs = None
        if self.layer_type.slices:
            is_own = self.layer_type.name == "Parameter"
            of_all = parameter_type(self.parameter) if is_own else layer_type_of(self.module)
            outputs = None if of_all is None else of_all.dims(self.module)[1]
        return Sizes(self.r, self.d_in, self.d_out, self.stack, outputs)

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return getattr(self.module, self.parameter)

    @property
    def stack(self) -> int:
        """The number of matrices in the weight's stack."""
        return self.layer_type.stack(self.module)

    @property
    def reader_name(self) -> str:
        """Path of the module whose forward reads the weight, in quotes, or what it is where it has no path."""
        if self.reader is None:
            return ""
        inside = [part for part in (self.reader.below, self.parameter if self.type == "Parameter" else "") if part]
        path = self.name.removesuffix(".".join(inside)).removesuffix(".")
        return f'"{path}"' if path else "the model"

    @property
    def type(self) -> str:
        """Its kind in a report."""
        own = self.layer_type.name
        tokens = ", token rows" if self.layer_type.tokens else ""
        return own if own == "Parameter" else f"{type(self.module).__name__}{tokens}"

    @property
    def shape(self) -> str:
        """What is adapted: outputs and inputs of the layer, or the rows and their width."""
        return f"{self.r} x {self.d_out}" if self.layer_type.tokens else f"{self.d_out} x {self.d_in}"


@dataclass(frozen=True)
class LeftOut:
    """A module with weights that gets no adapter, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class Targets:
    """The result of `find_targets`, in the model's order."""

    adapted: list[Target]
    left_out: list[LeftOut]
