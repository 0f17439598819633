"""What a run has trained, put on the base: attached as an adapter, or in place of its weights for a while."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from rankwise.collector import collector_paused
from rankwise.errors import AdapterError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, attach, check_new_name, eject
from rankwise.lora.layer.initial import initial_tensors
from rankwise.lora.targets.find import Target, Targets, find_targets
from rankwise.lora.trained_modules import enclosing_modules, is_inside
from rankwise.lora.variants import FORMS
from rankwise.pack.modes import left_as_found
from rankwise.pack.resolved import AdapterState
from rankwise.sweeps.problem import Run

ACTING = "acting"
"""What the adapter of a run is called while it acts."""


def put_on(model: nn.Module, run: Run, state: AdapterState, name: str) -> Report:
    """Attach what a run has trained to the base, as `inject` attaches a fresh adapter.

    Args:
        model: The base.
        run: Of method "lora", or "head".
        state: Its tensors.
        name: What the adapter is to be called.

    Raises:
        AdapterError: The run is of full fine-tuning, or the name is taken.
    """
    if run.method == "full":
        raise AdapterError(f"{run.name} trains all weights of the base; there is no adapter of it.")
    modules = run.member.modules_to_save
    lora = run.member.lora or _without_update(model, modules)
    check_new_name(model, name)
    found = find_targets(model, lora)
    adapted = [target for target in found.adapted if target.name not in modules]
    tensors = {target.name: _tensors_of(target, lora, {**run.start, **state}) for target in adapted}
    of_adapter = {f"{name}.{key}" for name, own in tensors.items() for key in own}
    replacements = {key: value for key, value in state.items() if key not in of_adapter}
    config = replace(lora, modules_to_save=enclosing_modules(model, modules))
    with collector_paused():
        return attach(model, Targets(adapted, found.left_out), tensors, config, name, replacements)


def _without_update(model: nn.Module, head: Sequence[str]) -> LoRAConfig:
    """The settings of an adapter for a head that was trained alone: r = 1 in the smallest layer, where B stays 0.

    PEFT's format, and what reads it, has no adapter without a layer.

    Args:
        model: The base.
        head: The modules that were trained.
    """
    anywhere = LoRAConfig(r=1, target_modules=lambda path, module: not is_inside(path, head))
    found = find_targets(model, anywhere).adapted
    plain = [target for target in found if target.layer_type.name == "Linear" and not target.aliases]
    smallest = min(plain or found, key=lambda target: target.parameters)
    return LoRAConfig(r=1, target_modules=(smallest.name,))


def _tensors_of(target: Target, lora: LoRAConfig, state: AdapterState) -> dict[str, Tensor]:
    """What a run has in a layer: from its start and state what it has trained, and what is frozen as its settings draw
    it where its start doesn't say."""
    declared = [one for one in FORMS[target.variant].tensors if not one.shared]
    known = {one.name: state[key] for one in declared if (key := f"{target.name}.{one.name}") in state}
    return known if len(known) == len(declared) else {**initial_tensors(target, lora), **known}


@contextmanager
def acting(model: nn.Module, run: Run, state: AdapterState, first: Callable[[], object]) -> Generator[None]:
    """Inside this block the model is what a run has trained; afterwards it is the base, bit for bit.

    Args:
        model: The base.
        run: Of any method.
        state: Its tensors.
        first: Runs the model once, without a cache: readers of adapted weights are found in the first forward pass.
    """
    with left_as_found(model), _adapter(model, run, state) if run.member.lora is not None else _weights(model, state):
        with suppress(AdapterError), torch.no_grad():  # which names a reader that was found, and asks for another call
            first()
        yield


@contextmanager
def _adapter(model: nn.Module, run: Run, state: AdapterState) -> Generator[None]:
    put_on(model, run, state, ACTING)
    try:
        yield
    finally:
        eject(model, ACTING)


@contextmanager
@torch.no_grad()
def _weights(model: nn.Module, state: AdapterState) -> Generator[None]:
    """Trained weights in place of the base's."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: parameters[name].detach().clone() for name in state}
    try:
        for name, value in state.items():
            parameters[name].copy_(value)
        yield
    finally:
        for name, value in before.items():
            parameters[name].copy_(value)
