"""The module that holds A and B: submodule `lora` of an adapted layer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, compiler, is_grad_enabled, nn
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from rankwise.errors import AdapterError, suggest
from rankwise.lora.layer.calls import input_and_rest, laid_out_as
from rankwise.lora.layer.fusing import is_being_fused, without_base
from rankwise.lora.layer.holding import Holding
from rankwise.lora.layer.per_row import ByRow, add_by_row
from rankwise.lora.layer.recomputed import (
    check_same,
    graph_task,
    in_plain_forward,
    is_fwd_grad_enabled,
    marked,
    saving_hooks,
    wrong_gradients,
)
from rankwise.lora.layer_types.quantised import Before, in_eight_bits, make_quantised
from rankwise.lora.offloaded import data_of
from rankwise.lora.targets.modules import child_name, named_once, submodule
from rankwise.lora.targets.readers import Reader, show_tensor
from rankwise.lora.targets.ties import flip


class LoRA(Holding):
    r"""The named adapters of one weight, and the hooks through which the active ones act.

    $$h = W_0 x + \sum_{\text{active}} s\,B A x$$

    On a layer that is called, a forward hook adds the update to the output. A weight that is read without a
    call is replaced by W + delta for the length of the forward that reads it: as an attribute of the instance,
    which hides the parameter and leaves it where it is.

    Flags switch, hooks stay: a hook added or removed after `torch.compile` is ignored silently, a flag is
    not. The hook is a method, never a closure: `deepcopy` and pickle then carry it to the copy's own A and B.

    Args:
        layer: The layer to adapt. It is not kept.
        layer_type: Its entry in `LAYER_TYPES`.
        parameter: Name of the weight.
    """

    disabled: bool = False
    before: Before | None = None
    """The quantised layer from before merging gave it a plain weight."""
    acted: tuple[str, ...] | None = None
    """Adapters that acted in the last forward with gradients; None before the first one."""
    by_row: ByRow | None = None
    """Adapters of which each row of the batch has its own; they act instead of the active ones."""
    tied_weight: tuple[nn.Parameter, ...] = ()
    """The weight that the layer shared before it was given a copy."""
    handles: tuple[RemovableHandle, ...] = ()
    looks: str | None = None
    """The attribute of a layer that is a whole model which looks at it in train mode (`lora.base.before_forward`)."""
    below: str | None = None
    """Path from the module that reads the weight to the layer; None where the layer is called itself."""

    def delta(self, layer: nn.Module, name: str) -> Tensor:
        """Return what an adapter adds to the weight."""
        return self.variant_of(name).delta(self.kind_of(name), layer, self.tensors(name), self.scale[name])

    @property
    def is_called(self) -> bool:
        """Whether it acts by a hook on its layer."""
        return self.below is None and bool(self.handles)

    @property
    def has_reader(self) -> bool:
        """Whether the weight is read without a call, so that W + delta takes its place."""
        return self.below is not None

    @property
    def freed(self) -> bool:
        """Whether merging freed the base's weight."""
        return bool(self.merged) and self.base_weight is None and self.before is None

    def hook_on(self, layer: nn.Module, reader: Reader | None) -> None:
        """Register the hooks: on the layer, or on the module that reads its weight. Earlier ones go."""
        self.unhook()
        load = layer.register_load_state_dict_pre_hook(self.load_base)
        if reader is None:
            # With keyword arguments, because a layer may be called as layer(input=x). Before the hooks of others, which
            # are to see what they see once the adapter is merged.
            hook = layer.register_forward_hook(self.add_update, prepend=True, with_kwargs=True)
            self.__dict__["handles"] = hook, load  # nn.Module makes an assignment dear
            return
        self.below = reader.below
        put = reader.module.register_forward_pre_hook(self.put_sum)
        take = reader.module.register_forward_hook(self.take_sum, always_call=True)
        self.handles = (put, take, load)

    def unhook(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def add_update(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Tensor | None = None
    ) -> Tensor | None:
        """The forward hook: the layer's output plus the updates of the active adapters."""
        # `is_compiling`, in half its time.
        compiling = is_dynamo_compiling() or compiler._is_compiling_flag  # pyright: ignore[reportPrivateUsage]
        if not compiling:  # and then `_check_recomputed`, where there is something to check or to note
            if self.looks is not None and layer.training and (before := layer.__dict__.get(self.looks)) is not None:
                before.look(layer)
            differentiates = is_grad_enabled()
            plain = graph_task() == -1 and (differentiates or is_fwd_grad_enabled())
            if not plain or (differentiates and (self.acted is not self.active or self.disabled)):
                self._check_recomputed()
        if self.disabled or self.merged or (self.by_row is None and not self.active):
            return output
        if output is None:
            kind = type(layer)
            raise AdapterError(
                f"A {kind.__module__}.{kind.__name__} has taken the place of an adapted layer and its hook along, but "
                "not its adapter (torch.ao.quantization does that). Merge before quantising, or leave that layer out."
            )
        inputs, rest, named = (args[0], args[1:], kwargs) if args else input_and_rest(kwargs)
        if self.by_row is not None:
            return add_by_row(self.by_row.groups(), layer, inputs, output, rest, named)
        layer_type = self.layer_type
        # Straight to the parameters: `self.A[name]` twice would cost a third of a small layer's hook. Looked up
        # at every call, because functional_call, FSDP and load_state_dict(assign=True) put others in their place.
        kept: dict[str, Any] = self._modules
        A_of: dict[str, Tensor] = kept["A"]._parameters
        B_of: dict[str, Tensor] = kept["B"]._parameters
        base, on_cpu, more, update_of = output, inputs.is_cpu, rest or named, layer_type.update
        for name in self.active:
            if self.varied and (name in self.kinds or self.form_of(name) != "lora"):
                added = marked(self._varied(layer, name, inputs, base, rest, named), self.active)
                output = output - added.to(output.dtype)
                continue
            pair = A_of[name], B_of[name]
            if not (on_cpu and pair[0].is_cpu) and pair[0].device != inputs.device:
                pair = self.brought(name, inputs.device)
            elif name in self.flipped:
                pair = flip(*pair)
            x, scale = inputs, self.scale[name]
            if not layer_type.reads_indices and x.dtype is not pair[0].dtype:
                # Not x, which would be kept in float32 for the backward pass.
                pair = pair[0].to(x.dtype), pair[1].to(x.dtype)
            A, B = pair
            if self.training and self.configs[name].dropout and not layer_type.reads_indices:
                x = nn.functional.dropout(x, self.configs[name].dropout)
            # Minus the negative: the same numbers, but subtracting the +0 of B = 0 leaves every bit of the
            # output, while adding it would turn -0 into +0. The scale takes no call of its own.
            signed = B if scale < 0 else -B
            update = update_of(layer, x, A, signed, *rest, **named) if more else update_of(layer, x, A, signed)
            if A.shape[0] == 1 or not layer_type.linear:
                update = update + 0.0  # it can be -0 itself: one product, no sum; or a convolution's own sum
            if update.dtype is not output.dtype:
                update = update.to(output.dtype)
            if update.requires_grad and not compiling and saving_hooks(False) is not None:
                update = marked(update, self.active)
            total = torch.sub(output, update, alpha=abs(scale))
            output = total if layer_type.linear else laid_out_as(total, output)
        return output

    def _check_recomputed(self) -> None:
        """Raise where a backward pass runs the layer again (activation checkpoints) and other adapters act by now."""
        acting, differentiates = () if self.disabled else self.active, is_grad_enabled()
        if in_plain_forward(differentiates):
            if differentiates and acting is not self.acted:
                self.__dict__["acted"] = acting  # nn.Module makes an assignment dear
            return
        check_same(self, acting)
        # Others than before are seen by what `marked` returns; here, whether there were any.
        if differentiates and self.acted is not None and bool(acting) != bool(self.acted):
            raise wrong_gradients(acting, self.acted)

    def _varied(
        self,
        layer: nn.Module,
        name: str,
        x: Tensor,
        base: Tensor,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Tensor:
        """The negative of what an adapter of another variant, or on a part of the layer, adds to the layer's output,
        without a negative zero."""
        kind, tensors = self.kind_of(name), self.tensors(name, x.device)
        if not kind.reads_indices:
            x = x.to(next(iter(tensors.values())).dtype)  # norms of rows need more than half precision
            if self.training and self.configs[name].dropout and not kind.tokens:
                x = nn.functional.dropout(x, self.configs[name].dropout)
        return 0.0 - self.variant_of(name).forward(kind, layer, x, base, tensors, self.scale[name], rest, named)

    def __getstate__(self) -> dict[str, Any]:
        """As of any adapter, unless torch fuses a normalisation into the layer's copy, which an adapter would miss."""
        state = super().__getstate__()
        return state if not is_being_fused() else without_base(state)

    def put_sum(self, reader: nn.Module, args: tuple[Any, ...]) -> None:
        """The pre-hook of a weight that is read without a call: let the reader find W + delta in its place."""
        if not is_compiling():
            self._check_recomputed()
        if self.disabled or self.merged or not self.active:
            return
        layer = submodule(reader, self.below or "")
        weight = self.weight(layer)
        if in_eight_bits(weight):
            raise AdapterError(
                f"The weight of a {type(layer).__name__} is stored in 8-bit floats and read without calling the layer; "
                "W + delta would be rounded to 8 bits. Leave the layer out of the adapter."
            )
        values = data_of(layer, self.parameter) if weight.is_meta else weight
        total = values.to(next(iter(self.parameters_of(self.active[0]).values())).dtype)
        for name in self.active:
            # As in `add_update`: minus the negative, without its own negative zero.
            total = total - (0.0 - self.delta(layer, name).to(total.device))
        show_tensor(layer, self.parameter, weight, marked(total.to(weight.dtype), self.active))

    def take_sum(self, reader: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """The hook after it, called also where the forward failed: the parameter is to be seen again."""
        layer = submodule(reader, self.below or "")
        total = layer.__dict__.pop(self.parameter, None)
        if total is not None:
            show_tensor(layer, self.parameter, total, None)

    def restore(self, layer: nn.Module) -> None:
        """Restore the layer's weight from before merging, bit for bit."""
        if self.base_weight is not None:
            with torch.no_grad():
                self.weight(layer).copy_(self.base_weight)
        if self.before is not None:
            make_quantised(layer, self.before)
        self.merged, self.base_weight, self.before = (), None, None

    def tie_again(self, layer: nn.Module) -> None:
        """Restore the weight that the layer shared."""
        if self.tied_weight:
            layer.weight = self.tied_weight[0]

    def extra_repr(self) -> str:
        """Name the adapters, the active ones, and a state that is not the usual one."""
        state = ", merged" * bool(self.merged) + ", disabled" * self.disabled
        return f"adapters={list(self.scale)}, active={list(self.active)}{state}"


def lora_of(layer: nn.Module, parameter: str = "weight") -> LoRA | None:
    """Return the adapters of a layer's weight, or None where it has none."""
    lora = layer._modules.get(child_name(parameter))  # pyright: ignore[reportPrivateUsage]  (hasattr raises and catches: slow)
    return lora if isinstance(lora, LoRA) else None


def loras_in(model: nn.Module) -> Iterator[tuple[list[str], nn.Module, LoRA]]:
    """Yield the paths of each adapted weight's layer, the layer, and the weight's adapters, in the model's order."""
    for layer, names in named_once(model):
        for child in layer._modules.values():  # pyright: ignore[reportPrivateUsage]
            if isinstance(child, LoRA):
                yield names, layer, child


def adapted_layers(model: nn.Module) -> dict[str, tuple[nn.Module, LoRA]]:
    """Return the layers that have adapters, each once, by first path.

    The path of an adapted parameter ends in its name, unless it is the `weight` of a layer in the table.
    """
    return {
        ".".join(filter(None, (names[0], lora.parameter if lora.is_parameter else ""))): (layer, lora)
        for names, layer, lora in loras_in(model)
    }


def layers_with(model: nn.Module, name: str) -> dict[str, tuple[nn.Module, LoRA]]:
    """Return the layers that have this adapter.

    Raises:
        AdapterError: None has.
    """
    layers = adapted_layers(model)
    found = {path: (layer, lora) for path, (layer, lora) in layers.items() if name in lora.scale}
    if not found:
        known = dict.fromkeys(known for _, lora in layers.values() for known in lora.scale)
        there = "it has " + ", ".join(f'"{known}"' for known in known) if known else "it has none; call inject first"
        raise AdapterError(f'The model has no adapter "{name}"; {there}.{suggest(name, known)}')
    return found
