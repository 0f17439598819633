"""A saved adapter as the starting point of a run: what it trains, and from which tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from rankwise.adapter_files import load_adapter
from rankwise.errors import AdapterFileError
from rankwise.lora.adapter import layers_with
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import eject
from rankwise.lora.trained_modules import replacement_tensors
from rankwise.pack.member import Member
from rankwise.pack.resolved import AdapterState, resolve
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.naming import distinct_names
from rankwise.train.settings import Training

PASSING = "start"
"""The adapter's name while it is read from the model."""


@dataclass(frozen=True)
class Start:
    """An adapter to continue from.

    Args:
        lora: Its settings.
        modules_to_save: Names of modules that it trains in full.
        state: Its tensors, as a run's.
    """

    lora: LoRAConfig
    modules_to_save: tuple[str, ...]
    state: AdapterState


def read_start(model: nn.Module, folder: Path) -> Start:
    """Read a saved adapter as a starting point; it is checked against the base as `load_adapter` does.

    Args:
        model: The base; it is as before afterwards.
        folder: The adapter's.

    Raises:
        AdapterFileError: It is damaged, doesn't fit the model, or trains biases or buffers, which packs don't.
    """
    load_adapter(model, folder, PASSING)
    try:
        layers = layers_with(model, PASSING)
        config = next(iter(layers.values()))[1].configs[PASSING]
        state: AdapterState = {}
        for path, (_, lora) in layers.items():
            variant, tensors = lora.variant_of(PASSING), lora.tensors(PASSING)
            if len(variant.trained) < len(variant.tensors):
                raise AdapterFileError(
                    f"{folder} is a {variant.label} adapter, whose frozen tensors a sweep draws for each seed, so "
                    "it can't be a starting point. Train one from the beginning, or merge it into the base."
                )
            state |= {f"{path}.{key}": tensor.detach().clone() for key, tensor in tensors.items()}
        kept = replacement_tensors(model, PASSING)
        frozen = [key for key, tensor in kept.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad]
        replacements = {key: tensor.detach().clone() for key, tensor in kept.items()}
    finally:
        eject(model, PASSING)
    if frozen:
        raise AdapterFileError(
            f"{folder} has \"{frozen[0]}\" of an enlarged vocabulary in place of the base's, which it doesn't train; a "
            "pack can't do that. Put it into the base instead."
        )
    modules = tuple(dict.fromkeys(key.rpartition(".")[0] for key in replacements))
    trained = {f"{name}.{key}" for name in modules for key, _ in model.get_submodule(name).named_parameters("", False)}
    if config.bias != "none" or trained != replacements.keys():
        raise AdapterFileError(
            f"{folder} has parts that a pack doesn't train: biases, buffers, or some parameters of a module without "
            "the others. Merge it into the base instead."
        )
    start = Start(replace(config, modules_to_save=()), modules, state | replacements)
    # A pack silently initialises whatever it gets no tensors for.
    found = resolve(model, Member(name=PASSING, lora=start.lora, modules_to_save=modules))
    needed = found.shapes.keys()
    if needed != start.state.keys():
        odd = sorted(needed ^ start.state.keys())
        raise AdapterFileError(f'{folder} can\'t be trained on in a pack: "{odd[0]}" is in one of the two only.')
    return start


def candidate_from(
    model: nn.Module,
    folder: Path,
    training: Training,
    lrs: tuple[float, ...],
    *,
    name: str | None = None,
    head: tuple[str, ...] = (),
    head_start: Callable[[int], AdapterState] = lambda seed: {},
    head_lr_multiplier: float = 1.0,
) -> Candidate:
    """A saved adapter trained on, as one configuration of a sweep.

    Args:
        model: The base.
        folder: The adapter's.
        training: How it is trained.
        lrs: Learning rates to try.
        name: What the configuration is called; by default after the folder.
        head: Modules that are trained in full whether or not the adapter has them.
        head_start: Seed -> their tensors where the adapter has none.
        head_lr_multiplier: Learning rate of what is trained in full, as a multiple of the run's.

    Raises:
        AdapterFileError: The adapter can't be used.
    """
    start = read_start(model, folder)
    name = name or distinct_names([folder.resolve()])[0]
    return Candidate(
        name=name,
        label=f"{name} (r = {start.lora.r})",
        method="lora",
        training=training,
        lrs=lrs,
        lora=start.lora,
        modules_to_save=tuple(dict.fromkeys((*head, *start.modules_to_save))),
        head_lr_multiplier=head_lr_multiplier,
        start=lambda seed: {**head_start(seed), **start.state},
    )
