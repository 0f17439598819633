"""Attach adapters to a model and detach them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.collector import collector_paused
from rankwise.errors import AdapterError, TargetError
from rankwise.lora.adapter import LoRA, adapted_layers, layers_with, lora_of
from rankwise.lora.base.buffers import remember_buffers
from rankwise.lora.base.init_data import Batches, data_of_layers
from rankwise.lora.checks.first_forward import move_to_readers, stop_watching, warn_of_missed
from rankwise.lora.checks.foreign import check_attachable
from rankwise.lora.checks.reads import WeightPlace, call, uses_of, weight_places, with_readers
from rankwise.lora.checks.threads import changes_model, check_free
from rankwise.lora.checks.watching import stop_watching_training, watch_injected, watch_what_is_left
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer.holding import Attached
from rankwise.lora.layer.initial import initial_tensors, shared_tensors, with_shared
from rankwise.lora.layer_types import LayerType, layer_type_of
from rankwise.lora.layer_types.quantised import keep_unpacked, numbers_in
from rankwise.lora.offloaded import register
from rankwise.lora.precheck import base_parameters, check_targets, forecast
from rankwise.lora.report import Report
from rankwise.lora.targets.find import LeftOut, Target, Targets, find_targets
from rankwise.lora.targets.modules import base_modules, base_tensors, child_name, structure_kept, unwrapped
from rankwise.lora.targets.patterns import pinned
from rankwise.lora.targets.readers import Reader
from rankwise.lora.trained_modules import (
    activate_trained,
    attach_trained,
    initial_replacements,
    is_inside,
    remove_trained,
    replacement_tensors,
    saved_modules,
    trained_readers,
)
from rankwise.lora.variants import VariantTensors

_THAWED = "_rankwise_thawed"
"""Attribute of an injected model: names of the parameters that were trainable before."""


@torch.inference_mode(False)
def inject(
    model: nn.Module,
    config: LoRAConfig,
    name: str = "default",
    *,
    example: Any = None,
    untie: bool = False,
    init_data: Iterable[Any] | None = None,
    init_loss: Callable[[nn.Module, Any], Tensor] | None = None,
    dry_run: bool = False,
) -> Report:
    r"""Freeze a model and attach an adapter to its target modules, in place.

    $$h = W_0 x + s\,B A x$$

    The model's class, base keys of `state_dict()`, and train or eval mode don't change; until training
    the output is the base's, bit for bit (B is zero). The new adapter becomes the only active one. If
    anything is wrong the model is not changed.

    Args:
        model: Any module; it may itself be the layer.
        config: Rank, alpha, targets, initialisation.
        name: The adapter's name in this model.
        example: A batch (a tensor, a mapping of keywords, or a tuple of arguments) with which the model is run
            once, to find weights that are read without calling their layer: the reader is then given W + delta.
            Without it the first forward finds them, and runs again if it missed an adapter (not a compiled
            one: before `torch.compile` run the model once, or pass this).
        untie: What to do with a target that shares its weight with another module (tied embeddings). False: one
            adapter on the weight, which acts in all of them. True: the target gets a copy of the weight, until
            `eject`; set `tie_word_embeddings` (transformers) of a model that is saved while untied.
        init_data: Batches, as `example` is one, for the initialisations that start from training data ("eva",
            "lora-ga").
        init_loss: (model, batch) -> the loss, for "lora-ga". None takes the output's `loss`.
        dry_run: Only report what would be done; don't change the model.

    Returns:
        The adapted modules and those left out; `print` it.

    Raises:
        TargetError: A pattern matches nothing, or matches something that can't be adapted.
        AdapterError: The name is taken or can't be one; the model is merged.
        ConfigError: The initialisation needs data, and there are none.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(inject(model, LoRAConfig(r=2)))
        module  count  type    shape  r  parameters
        0           1  Linear  8 x 4  2          24
        2           1  Linear  2 x 8  2          20
        adapter "default": 44 trainable parameters in 2 modules, 75.86% of the base's 58

    References:
        Hu et al., LoRA, 2021, section 4.1. https://arxiv.org/abs/2106.09685
    """
    runs = example is not None or init_data is not None  # the model's own code, which may do anything to it
    with collector_paused(), nullcontext() if runs else structure_kept():
        check_new_name(model, name)
        check_attachable(model)
        targets, config, replacements = _with_replacements(model, find_targets(model, config, untie=untie), config)
        readers = {} if example is None else trained_readers(model, replacements)
        wholly = [WeightPlace(owner, path.rpartition(".")[2], host) for path, (owner, host) in readers.items()]
        if example is not None:
            keep_unpacked(model)
        uses = None if example is None else uses_of(model, [*weight_places(targets), *wholly], example)
        targets = with_readers(targets, uses) if uses else targets
        if dry_run:
            return forecast(model, targets, config, name, replacements)
        check_targets(model, targets, config, replacements, fresh=True)
        data = data_of_layers(model, targets.adapted, config.init, Batches.given(init_data, call, init_loss))
        with torch.no_grad():
            tensors = {target.name: initial_tensors(target, config, data) for target in targets.adapted}
        report = attach(model, targets, tensors, config, name, replacements, checked=not runs)
        if uses:
            stop_watching(model)
            move_to_readers(model, uses)
            warn_of_missed(model, uses.called)
        return report


def _with_replacements(
    model: nn.Module, targets: Targets, config: LoRAConfig
) -> tuple[Targets, LoRAConfig, dict[str, Tensor]]:
    """Find what is trained in full; targets inside it get no adapter."""
    saved = saved_modules(model, config) if config.modules_to_save else []
    within = [target for target in targets.adapted if is_inside(target.name, saved)]
    if both := next((target.name for target in within if target.layer_type.tokens), None):
        raise TargetError(
            f'"{both}" is trained in full (modules_to_save), and rows of it by trainable_tokens: leave out one.'
        )
    left_out = [LeftOut(target.name, type(target.module).__name__, "trained in full") for target in within]
    targets = Targets([it for it in targets.adapted if it not in within], [*targets.left_out, *left_out])
    if not targets.adapted:
        raise TargetError("modules_to_save takes in every target, so there is nothing to adapt.")
    config = replace(config, modules_to_save=tuple(saved))
    replacements = initial_replacements(model, config, targets.adapted) if saved or config.bias != "none" else {}
    return targets, config, replacements


def attach(
    model: nn.Module,
    targets: Targets,
    tensors: Mapping[str, VariantTensors],
    config: LoRAConfig,
    name: str,
    replacements: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, Tensor] | None = None,
    *,
    checked: bool = False,
) -> Report:
    """Attach these tensors, as `inject` attaches fresh ones.

    Args:
        model: The model the targets were found in.
        targets: The modules to adapt.
        tensors: Module name -> the variant's tensors (for LoRA A and B), without shared ones.
        config: Stored with the adapter, its patterns expanded to names of modules.
        name: The adapter's name, checked by `check_new_name`.
        replacements: Path of a parameter or buffer -> the adapter's value.
        shared: Tensors that all layers share; None draws them from the configuration's seed.
        checked: Whether `check_targets` has passed, and nothing has happened to the model since.

    Returns:
        The report of `inject`.

    Raises:
        AdapterError: A target has a submodule `lora` of another making; a parameter can't be trained in full.
    """
    check_free(model)
    if not checked:
        check_targets(model, targets, config, replacements or {})
    keep_unpacked(model)
    remember_buffers(model)
    config = _by_name(config, targets.adapted)
    others = [lora for _, lora in adapted_layers(model).values()]
    frozen = _freeze(model)
    for lora in others:
        lora.switch(())
    drawn = shared_tensors(targets.adapted, config) if shared is None else shared
    tensors = with_shared(targets.adapted, tensors, _shared_parameters(targets, config, drawn))
    for target in targets.adapted:
        lora = _lora_at(target.module, target.layer_type, target.parameter, target.reader)
        if target.untie:
            lora.tied_weight = (_copy_weight(target.module),)
        lora.add(name, tensors[target.name], target.scale, config, target.module, target.layer_type)
        lora.switch((name,))
        for tie in target.ties:
            other = _lora_at(tie.module, tie.layer_type, "weight", tie.reader)
            other.join(name, lora, tie.flipped, tie.layer_type)
            other.switch((name,))
    attach_trained(model, name, replacements or {}, config)
    activate_trained(model, [name])
    _enlist(model, name, replacements or {})
    statistics = watch_injected(model, name)
    counts = {path: tensor.numel() for path, tensor in replacement_tensors(model, name).items() if tensor.requires_grad}
    return Report(name, targets.adapted, targets.left_out, frozen, counts, statistics)


def _shared_parameters(targets: Targets, config: LoRAConfig, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return frozen parameters for all layers to share, on the device of the first layer's weight."""
    if not shared:
        return {}
    weight = next(target.weight for target in targets.adapted if target.variant == config.variant)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    device = torch.device("cpu") if weight.is_meta else weight.device
    return {key: nn.Parameter(tensor.detach().to(device, dtype), requires_grad=False) for key, tensor in shared.items()}


def _enlist(model: nn.Module, name: str, replacements: Mapping[str, Tensor]) -> None:
    """Tell every layer of an adapter about the others, so that a missing layer is noticed."""
    layers = layers_with(model, name)
    attached = Attached(tuple(layers), tuple(replacements))
    for _, lora in layers.values():
        lora.__dict__["attached"] = {**lora.attached, name: attached}  # nn.Module makes an assignment dear


def _by_name(config: LoRAConfig, adapted: Sequence[Target]) -> LoRAConfig:
    """Expand a configuration's patterns to names: predicates can't be pickled, other models may match differently."""
    low_rank = [target for target in adapted if not target.layer_type.tokens]
    return replace(
        config,
        target_modules=tuple(target.name for target in low_rank),
        exclude_modules=(),
        rank_pattern=pinned({target.name: target.r for target in low_rank}, config.r),
        # A tied layer is filed under its own name.
        alpha_pattern=pinned(
            {name: target.alpha for target in low_rank for name in (target.name, *(tie.name for tie in target.ties))},
            config.alpha,
        ),
        slices={target.name: target.layer_type.slices for target in low_rank if target.layer_type.slices},
        trainable_tokens={t.name: t.layer_type.tokens for t in adapted if t.layer_type.tokens},
    )


def check_new_name(model: nn.Module, name: str) -> None:
    """Raise unless an adapter of this name can be added to the model now."""
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ParameterDict(), name):
        raise AdapterError(
            f'An adapter can\'t be called "{name}"; use letters, digits, "_" and "-", and no word of PyTorch\'s own.'
        )
    for path, (_, lora) in adapted_layers(model).items():
        if name in lora.scale:
            raise AdapterError(
                f'The model has an adapter "{name}" already (at "{path}"). Choose another name, or eject it first.'
            )
        if lora.merged:
            raise AdapterError(f'"{path}" holds a merged adapter; call unmerge before adding another.')


def _lora_at(layer: nn.Module, layer_type: LayerType, parameter: str, reader: Reader | None) -> LoRA:
    """Return the adapters of a weight; create them if there are none."""
    lora = lora_of(layer, parameter)
    if lora is None:
        own = layer_type_of(layer) if layer_type.partial and layer_type.name != "Parameter" else layer_type
        lora = LoRA(layer, own or layer_type, parameter)
        layer.add_module(child_name(parameter), lora)
        lora.hook_on(layer, reader)
    return lora


def _copy_weight(layer: nn.Module) -> nn.Parameter:
    """Replace a layer's weight by a copy, and return the original."""
    shared = layer.get_parameter("weight")
    register(layer, "weight", nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))
    return shared


def _freeze(model: nn.Module) -> int:
    """Freeze the base, remember on the model what was trainable, and return how many numbers it has."""
    base, owner = base_parameters(model), unwrapped(model)
    thawed = [name for name, parameter in base.items() if parameter.requires_grad]
    for name in thawed:
        base[name].requires_grad_(False)
    setattr(owner, _THAWED, (*owner.__dict__.get(_THAWED, ()), *thawed))
    return sum(map(numbers_in, base.values()))


@changes_model
def eject(model: nn.Module, name: str | None = None) -> None:
    """Detach one adapter from the model, or all.

    With the last one everything is as before `inject`: keys, hooks, what was trainable, and, if the
    adapters are merged, the weights. Only after `merge(keep_base=False)`, which freed them, the weights
    stay merged: this gives a plain model that includes the adapter.

    Args:
        model: The model.
        name: The adapter; None for all.

    Raises:
        AdapterError: There is no such adapter; or it is merged and others stay.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> _ = inject(layer, LoRAConfig(r=1))
        >>> eject(layer)
        >>> list(layer.state_dict()), layer.weight.requires_grad
        (['weight', 'bias'], True)
    """
    stop_watching_training(model)
    layers = adapted_layers(model)
    if name is None and not layers and _THAWED not in unwrapped(model).__dict__:
        raise AdapterError(f"The {type(model).__name__} has no adapter to eject.")
    if name is not None:
        layers = layers_with(model, name)
        if any(lora.merged for _, lora in layers.values()):
            raise AdapterError(f'Adapter "{name}" can\'t be ejected while adapters are merged; call unmerge first.')
    for layer, lora in layers.values():
        for gone in list(lora.scale) if name is None else [name]:
            lora.remove(gone)
        if not lora.scale:
            for_good = lora.freed
            lora.restore(layer)
            if not for_good:
                lora.tie_again(layer)
            lora.unhook()
            delattr(layer, child_name(lora.parameter))
    # Last: while merged, an adapter's parameter may replace a layer's base weight.
    remove_trained(model, name)
    left = bool(adapted_layers(model))
    watch_what_is_left(model, adapters=left)
    if not left:
        _thaw(model)


def _thaw(model: nn.Module) -> None:
    for module in base_modules(model):
        thawed = module.__dict__.pop(_THAWED, ())
        own = base_tensors(module, buffers=False) if thawed else {}
        for name in thawed:
            if name in own:  # a layer may have been replaced since
                own[name].requires_grad_(True)
