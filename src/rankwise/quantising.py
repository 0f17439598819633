"""A loaded model's linear layers in 8 or 4 bits, in place; adapters then train over them as over any layer.

| kind | bytes of a weight (d_out, d_in) | what it is |
|---|---|---|
| `"int8"` | d_out d_in + 4 d_out | whole numbers with a scale for each row (LLM.int8(), without outlier columns) |
| `"nf4"` | 0.516 d_out d_in + 1 KiB | 16 levels of a normal distribution, a scale in 8 bits for every 64 numbers |

It needs the extra `quant` (bitsandbytes), and runs on a CPU too.

References:
    Dettmers et al., LLM.int8(), 2022, section 2. https://arxiv.org/abs/2208.07339
    Dettmers et al., QLoRA, 2023, section 3. https://arxiv.org/abs/2305.14314
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError, TargetError, suggest
from rankwise.lora.adapter import adapted_layers
from rankwise.lora.config import TargetPattern
from rankwise.lora.inits.loftq import remember_error
from rankwise.lora.layer_types import called_as_listed, layer_type_of, weight_of
from rankwise.lora.layer_types.linear import LINEAR
from rankwise.lora.layer_types.quantised import in_eight_bits, keep_unpacked, plain_weight
from rankwise.lora.targets.find import output_heads
from rankwise.lora.targets.modules import named_once
from rankwise.lora.targets.patterns import Patterns, pattern_list
from rankwise.lora.targets.ties import sharers
from rankwise.tables import text_table


@dataclass(frozen=True)
class QuantizeReport:
    """The report of `quantize`; prints as a table.

    Args:
        layers: Path -> bytes of the layer's weight, before and after.
        left_out: Path -> why a linear layer stayed as it was.
    """

    layers: dict[str, tuple[int, int]]
    left_out: dict[str, str]

    @property
    def saved(self) -> int:
        """Bytes that the model's weights take less."""
        return sum(before - after for before, after in self.layers.values())

    def __str__(self) -> str:
        """The sum over all layers, and what was left out."""
        before, after = (sum(sizes) for sizes in zip(*self.layers.values(), strict=True))
        lines = [f"{len(self.layers)} linear layers quantised: {before / 2**20:.1f} MiB -> {after / 2**20:.1f} MiB"]
        if self.left_out:
            lines.append(text_table(["left as it was", "why"], [[name, why] for name, why in self.left_out.items()]))
        return "\n".join(lines)


def quantize(
    model: nn.Module, kind: str, skip: TargetPattern | Sequence[TargetPattern] = (), *, error_rank: int = 0
) -> QuantizeReport:
    """Store the weights of a model's linear layers in few bits, in place.

    Output heads of transformers models, layers that share their weight, and embeddings stay as they are; so do, for
    "nf4", layers whose inputs are no multiple of 64. transformers' Conv1D becomes the same layer as a Linear.

    Args:
        model: A loaded model without adapters; it mustn't be a linear layer itself.
        kind: "nf4" (4 bits) or "int8".
        skip: Patterns of layers to leave as they are, as `LoRAConfig.exclude_modules` takes them; each must match.
        error_rank: Largest rank of adapters that start with `init="loftq"`: what is taken from each weight is kept as
            its best approximation of this rank, error_rank (d_in + d_out) numbers a layer. 0 keeps nothing.

    Returns:
        Bytes before and after, and what was left out; `print` it.

    Raises:
        ConfigError: The kind isn't known, or bitsandbytes isn't installed.
        TargetError: A pattern matches no linear layer; there is nothing to quantise; the model has adapters.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> report = quantize(model, "int8", skip="2")
        >>> report.layers, report.left_out
        ({'0': (16384, 4352)}, {'2': 'skipped'})
    """
    chosen, left_out = _checked(model, kind, skip)
    sizes: dict[str, tuple[int, int]] = {}
    for path, (layer, paths) in chosen.items():
        quantised = _quantised(layer, kind)
        if error_rank:
            layer_type, weight = layer_type_of(layer), layer.get_parameter("weight").detach()
            weight = weight.mT if layer_type is not None and layer_type.transposed else weight
            rounded = plain_weight(quantised, layer_type_of(quantised) or LINEAR)
            remember_error(quantised, weight, rounded, error_rank)
        for name in paths:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, quantised)
        sizes[path] = layer.get_parameter("weight").nbytes, _bytes_of_weight(quantised)
    keep_unpacked(model)
    return QuantizeReport(sizes, left_out)


def round_weights(model: nn.Module, kind: str, skip: TargetPattern | Sequence[TargetPattern] = ()) -> None:
    """Give a model's linear layers the values that their weights have in few bits, in the type and the place they have:
    what a quantised base computes with, as a model that can be saved.

    Args:
        model: As for `quantize`.
        kind: As for `quantize`.
        skip: As for `quantize`.

    Raises:
        ConfigError: As `quantize`.
        TargetError: As `quantize`.
    """
    chosen = _checked(model, kind, skip)[0]
    with torch.no_grad():
        for layer, _ in chosen.values():
            layer_type, quantised = layer_type_of(layer), _quantised(layer, kind)
            rounded = plain_weight(quantised, layer_type_of(quantised) or LINEAR)
            weight = layer.get_parameter("weight")
            weight.copy_(rounded.mT if layer_type is not None and layer_type.transposed else rounded)


def _checked(
    model: nn.Module, kind: str, skip: TargetPattern | Sequence[TargetPattern]
) -> tuple[dict[str, tuple[nn.Module, list[str]]], dict[str, str]]:
    if kind not in KINDS:
        known = ", ".join(f'"{name}"' for name in KINDS)
        raise ConfigError(f'A model can\'t be quantised to "{kind}"; there are {known}.{suggest(kind, KINDS)}')
    if adapted_layers(model):
        raise TargetError("The model has adapters; quantise it before inject, or eject them first.")
    return _choose(model, kind, Patterns(pattern_list(skip)))


def _choose(
    model: nn.Module, kind: str, skip: Patterns
) -> tuple[dict[str, tuple[nn.Module, list[str]]], dict[str, str]]:
    modules = named_once(model)
    heads, shared = output_heads(modules), sharers(modules)
    chosen: dict[str, tuple[nn.Module, list[str]]] = {}
    left_out: dict[str, str] = {}
    for layer, paths in modules:
        layer_type = layer_type_of(layer)
        if layer_type is None or not layer_type.linear or not layer_type.matrix:
            continue
        skipped, (d_in, _) = skip.matching(paths, layer), layer_type.dims(layer)
        skip.mark(skipped)
        why = {
            "skipped": bool(skipped),
            "it is the output head": layer in heads,
            "another module has its weight too": layer._parameters.get("weight") in shared,  # pyright: ignore[reportPrivateUsage]
            "its weight is read without a call, or in its own way": not called_as_listed(layer),
            "it is the model itself": layer is model,
            f"its {d_in} inputs are no multiple of {_INPUTS[kind]}": d_in % _INPUTS[kind] != 0,
            "its weight is stored in 8-bit floats": in_eight_bits(weight_of(layer)),
            "its weight is quantised or computed": type(layer._parameters.get("weight")) is not nn.Parameter,  # pyright: ignore[reportPrivateUsage]
        }
        reason = next((reason for reason, holds in why.items() if holds), None)
        if reason is None:
            chosen[paths[0]] = (layer, paths)
        else:
            left_out[paths[0]] = reason
    if skip.unused():
        near = suggest(str(skip.unused()[0]), [*chosen, *(path.rpartition(".")[2] for path in chosen)])
        raise TargetError(f'No linear layer matches skip "{skip.unused()[0]}".{near}')
    if not chosen:
        raise TargetError(
            f"Nothing in the {type(model).__name__} is left to quantise: {left_out or 'no linear layer'}."
        )
    return chosen, left_out


_RUNS_LAYERS = "bitsandbytes.autograd._functions"
"""The logger of what computes in 8 bits."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of bitsandbytes is more than that inputs are rounded, which it says again in every pass."""
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _int8(bitsandbytes: Any, layer: nn.Module, weight: Tensor) -> nn.Module:
    logging.getLogger(_RUNS_LAYERS).addFilter(_is_news)  # once: the same filter is not added again
    # Threshold 0: with outlier columns a row's result would depend on the other rows of its batch.
    new = bitsandbytes.nn.Linear8bitLt(*weight.mT.shape, bias=False, has_fp16_weights=False, device="meta")
    new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False)
    return new


def _nf4(bitsandbytes: Any, layer: nn.Module, weight: Tensor) -> nn.Module:
    new = bitsandbytes.nn.Linear4bit(
        *weight.mT.shape, bias=False, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
    )
    new.weight = bitsandbytes.nn.Params4bit(weight, quant_type="nf4", module=new)
    return new


KINDS: dict[str, Callable[[Any, nn.Module, Tensor], nn.Module]] = {"nf4": _nf4, "int8": _int8}
"""Name -> (bitsandbytes, layer, its weight on the CPU) -> the same layer, quantised once it goes to its device."""


_INPUTS = {"nf4": 64, "int8": 1}
"""Kind -> what the inputs of a layer must be a multiple of: where blocks of 64 numbers reach over the end of a row,
bitsandbytes 0.50.2 reads other numbers on a CPU than it has stored."""


def _quantised(layer: nn.Module, kind: str) -> nn.Module:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            'Quantising needs bitsandbytes, of the extra "quant": run pip install ".[quant]" in a checkout of Rankwise.'
        ) from error
    layer_type, own = layer_type_of(layer), layer.get_parameter("weight").detach()
    weight = own.mT if layer_type is not None and layer_type.transposed else own
    new = KINDS[kind](bitsandbytes, layer, weight.to("cpu").contiguous())
    # bitsandbytes quantises on the way to a device. Its own copy is the only one that is made.
    new = new.to(own.device).train(layer.training)
    new.register_parameter("bias", layer._parameters.get("bias"))  # pyright: ignore[reportPrivateUsage]
    return new


def _bytes_of_weight(layer: nn.Module) -> int:
    """Return the bytes of a quantised weight and what it needs to be read."""
    # What else is in the state dict only tells a reader of the file how the weight is stored.
    own: dict[str, Tensor] = layer.state_dict()
    return sum(
        tensor.nbytes
        for key, tensor in own.items()
        if key == "SCB" or (key.startswith("weight") and key != "weight_format" and "bitsandbytes__" not in key)
    )
