"""Merge the active adapters into the weights, and undo that exactly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA, adapted_layers, lora_of
from rankwise.lora.checks.complete import check_complete
from rankwise.lora.checks.foreign import is_sharded
from rankwise.lora.checks.threads import changes_model
from rankwise.lora.layer_types.quantised import in_eight_bits, is_opaque, make_plain, plain_weight
from rankwise.lora.targets.modules import named_once
from rankwise.lora.targets.ties import sharers
from rankwise.lora.trained_merge import check_mergeable_trained, merge_trained, unmerge_trained
from rankwise.tables import text_table


@dataclass(frozen=True)
class MergedLayer:
    """The precision of one merged weight.

    Args:
        name: The layer's path.
        dtype: Type of the weight; for a layer that was quantised also its former class.
        held: Share of delta's non-zero entries that changed the weight at all; the rest was rounded away.
        error: Norm of delta's rounding error, over the norm of delta.
    """

    name: str
    dtype: str
    held: float
    error: float


@dataclass(frozen=True)
class MergeReport:
    """The report of `merge`, layer by layer; prints as a table."""

    layers: list[MergedLayer]

    @property
    def worst(self) -> MergedLayer:
        """The layer with the largest rounding error."""
        return max(self.layers, key=lambda layer: layer.error)

    def __str__(self) -> str:
        """One row a layer."""
        rows = [[layer.name, layer.dtype, f"{layer.held:.1%}", f"{layer.error:.1e}"] for layer in self.layers]
        return text_table(["merged", "type", "entries held", "rounding error"], rows)


@changes_model
@torch.inference_mode(False)
def merge(model: nn.Module, *, keep_base: bool = True, dequantize: bool = False) -> MergeReport:
    r"""Add the active adapters into the weights, in float32 or wider: inference then costs nothing extra.

    $$W = W_0 + \sum_{\text{active}} s\,B A$$

    A narrow weight type can't hold a small delta: bfloat16 keeps 8 bits, so an entry of delta below 1/512
    of the weight's is rounded away. The report says how much was.

    Args:
        model: An injected model.
        keep_base: Keep the adapted layers' old weights on the CPU, so that `unmerge` is exact; False frees
            them for good.
        dequantize: What to do with layers whose weight is quantised, which can't take in delta. False: refuse. True:
            give them a plain weight, in the type of the model's other weights; the report lists them.

    Returns:
        How well each weight holds its delta.

    Raises:
        AdapterError: Nothing is active, something is merged or disabled already, a weight is no plain
            parameter or is quantised, or the sum is not finite. The model is then as before.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> merge(layer).worst.error
        0.0

    References:
        Hu et al., LoRA, 2021, section 4.1 ("No Additional Inference Latency").
    """
    layers = {path: (layer, lora) for path, (layer, lora) in adapted_layers(model).items() if lora.active}
    _check_mergeable(adapted_layers(model), bool(layers))
    for name in dict.fromkeys(name for _, lora in layers.values() for name in lora.active):
        check_complete(model, name)
    dtype = _plain_dtype(model)
    if not dequantize:
        _refuse_quantised(layers, dtype)
    layers, tied = _with_ties(model, layers)
    check_mergeable_trained(model)
    with torch.no_grad():
        # All is computed once to check that it can be stored, then again to store it: no second copy of
        # all weights is needed, and a failure leaves nothing half merged.
        report = MergeReport([_check_layer(path, layer, lora, dtype) for path, (layer, lora) in layers.items()])
        # First, since A and B may adapt a weight that the adapter itself replaces.
        merge_trained(model, keep_base)
        for path, (layer, lora) in layers.items():
            weight = lora.weight(layer)
            if (quantised := lora.row_now(layer).quantised) is not None:
                total = (_wide_weight(layer, lora) + _wide_delta(layer, lora)).to(_target_dtype(layer, lora, dtype))
                before = make_plain(path, layer, quantised, total)
                lora.before, lora.merged = before if keep_base else None, lora.active
                continue
            base = weight.detach().to("cpu", copy=True) if keep_base else None
            weight.copy_(_wide_weight(layer, lora) + _wide_delta(layer, lora))
            for user in (lora, *tied[path]):
                user.base_weight, user.merged = base, lora.active
    return report


@changes_model
def unmerge(model: nn.Module) -> None:
    """Restore the weights' bits from before `merge`.

    Args:
        model: A merged model.

    Raises:
        AdapterError: Nothing is merged, or `merge(keep_base=False)` freed the old weights.

    Examples:
        >>> from rankwise.lora import LoRAConfig, inject
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1)), merge(layer)
        >>> unmerge(layer)
        >>> layer.lora.merged
        ()
    """
    merged = {path: (layer, lora) for path, (layer, lora) in adapted_layers(model).items() if lora.merged}
    if not merged:
        raise AdapterError("Nothing is merged; unmerge undoes a merge.")
    for path, (_, lora) in merged.items():
        if lora.freed:
            raise AdapterError(
                f'The base weight of "{path}" was freed by merge(keep_base=False) and can\'t be restored. '
                "Load the base's checkpoint instead."
            )
    for layer, lora in merged.values():
        lora.restore(layer)
    unmerge_trained(model)


_IN_THE_WAY: dict[str, Callable[[Tensor], bool]] = {
    "has no data (it is on the meta device or offloaded): load the whole model on one device": lambda it: it.is_meta,
    "is sharded over processes: gather it first": is_sharded,
    "is stored in 8-bit floats, which would round most of delta away: load the base in bfloat16": in_eight_bits,
    "is sparse, or of a class that computes in its own way: load the base with plain weights": is_opaque,
}
"""Obstacle to writing W + delta, with the remedy -> its test."""


def _check_mergeable(layers: Mapping[str, tuple[nn.Module, LoRA]], any_active: bool) -> None:
    for path, (layer, lora) in layers.items():
        if lora.merged:
            raise AdapterError(f'"{path}" is merged already; call unmerge first.')
        if lora.disabled:
            raise AdapterError(f'The adapter of "{path}" is disabled; merge outside of `with disabled(...)`.')
        weight = lora.weight(layer)
        looked_at = lora.active and lora.row_now(layer).quantised is None
        if reason := next((why for why, holds in _IN_THE_WAY.items() if looked_at and holds(weight)), None):
            raise AdapterError(f'"{path}" can\'t be merged: its weight {reason}, or use the adapter unmerged.')
        if not isinstance(weight, nn.Parameter):
            raise AdapterError(
                f'The weight of "{path}" is computed from other tensors (parametrised), so delta can\'t be added to '
                "it. Call torch.nn.utils.parametrize.remove_parametrizations (remove_weight_norm, prune.remove) first."
            )
    if not any_active:
        raise AdapterError("No adapter is active, so there is nothing to merge; call inject or activate first.")


Layers = Mapping[str, tuple[nn.Module, LoRA]]


def _with_ties(model: nn.Module, layers: Layers) -> tuple[Layers, dict[str, list[LoRA]]]:
    """Return one layer for each weight, and the adapters of the other layers that share it."""
    shared = sharers(named_once(model))
    done: set[Tensor] = set()
    firsts: dict[str, tuple[nn.Module, LoRA]] = {}
    tied: dict[str, list[LoRA]] = {}
    for path, (layer, lora) in layers.items():
        weight = lora.weight(layer)
        if weight in done:
            continue
        done.add(weight)
        firsts[path], tied[path] = (layer, lora), []
        for other, names in shared.get(weight, ()) if isinstance(weight, nn.Parameter) else ():
            other_lora = lora_of(other, lora.parameter)
            if other is layer:
                continue
            if other_lora is None or not _same_adapters(lora, other_lora):
                raise AdapterError(
                    f'"{path}" can\'t be merged: "{names[0]}" has the same weight, but not the same adapters. '
                    "Inject or load with untie=True, which gives each its own weight."
                )
            tied[path].append(other_lora)
    return firsts, tied


def _same_adapters(one: LoRA, other: LoRA) -> bool:
    return one.active == other.active and all(_same_tensors(one, other, name) for name in one.active)


def _same_tensors(one: LoRA, other: LoRA, name: str) -> bool:
    mine, theirs = one.parameters_of(name), other.parameters_of(name)
    return mine.keys() == theirs.keys() and all(tensor is theirs[key] for key, tensor in mine.items())


def _wide_weight(layer: nn.Module, lora: LoRA) -> Tensor:
    weight = plain_weight(layer, lora.row_now(layer), lora.parameter).detach()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _wide_delta(layer: nn.Module, lora: LoRA) -> Tensor:
    """Sum the active adapters' deltas, shaped as the weight."""
    return sum(
        (lora.delta(layer, name) for name in lora.active),
        start=torch.zeros((), device=lora.weight(layer).device),
    )


def _plain_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the type of the model's first weight that isn't quantised; None where there is none."""
    own = {parameter for _, lora in adapted_layers(model).values() for parameter in lora.parameters()}
    plain = (
        p
        for p in model.parameters()
        if type(p) is nn.Parameter and p.is_floating_point() and p.itemsize > 1 and p not in own
    )
    return next((parameter.dtype for parameter in plain), None)


def _target_dtype(layer: nn.Module, lora: LoRA, plain: torch.dtype | None) -> torch.dtype:
    """Return the type of the merged weight."""
    if lora.row_now(layer).quantised is None:
        return lora.weight(layer).dtype
    return plain or plain_weight(layer, lora.row_now(layer)).dtype


def _refuse_quantised(layers: Mapping[str, tuple[nn.Module, LoRA]], plain: torch.dtype | None) -> None:
    found = {path: (layer, lora) for path, (layer, lora) in layers.items() if lora.row_now(layer).quantised is not None}
    for path, (layer, lora) in found.items():
        dtype = str(_target_dtype(layer, lora, plain)).removeprefix("torch.")
        raise AdapterError(
            f'The weight of "{path}" ({type(layer).__name__}) is quantised, and most of delta would be lost in it. Use '
            f"the adapter unmerged, or call merge(model, dequantize=True), which gives {len(found)} quantised layers "
            f"plain {dtype} weights."
        )


def _check_layer(path: str, layer: nn.Module, lora: LoRA, plain: torch.dtype | None) -> MergedLayer:
    """Compute the merged weight, check that it is finite, and measure how much of delta it holds."""
    before, delta, dtype = _wide_weight(layer, lora), _wide_delta(layer, lora), _target_dtype(layer, lora, plain)
    after = (before + delta).to(dtype).to(before.dtype)
    if not bool(torch.isfinite(after).all()):
        parts = {"the base weight": before, "delta": delta, f"their sum in {dtype}": after}
        culprit = next(what for what, tensor in parts.items() if not bool(torch.isfinite(tensor).all()))
        raise AdapterError(f'"{path}" can\'t be merged: {culprit} holds values that are not finite.')
    stored = after - before
    wanted = delta != 0
    norm = float(delta.norm())
    return MergedLayer(
        name=path,
        dtype=str(dtype).removeprefix("torch.")
        + (f", was {lora.layer_type.name}" if lora.row_now(layer).quantised else ""),
        held=float((stored[wanted] != 0).double().mean()) if norm else 1.0,
        error=float((stored - delta).norm()) / norm if norm else 0.0,
    )
