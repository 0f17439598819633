"""What is looked at while a model has adapters, begun and ended together."""

from torch import nn

from rankwise.lora.base.counts import forget_counts, watch_counts
from rankwise.lora.base.samples import restore_base
from rankwise.lora.base.statistics import freeze_statistics, thaw_statistics
from rankwise.lora.checks.first_forward import stop_watching, watch
from rankwise.lora.checks.first_steps import count_steps, stop_counting
from rankwise.lora.checks.still_there import stop_watching_structure, watch_structure


def watch_injected(model: nn.Module, name: str) -> tuple[str, ...]:
    """Freeze running statistics and watch a model from now on: its structure, first forward and first steps.

    Args:
        model: A model that has been given an adapter.
        name: The adapter.

    Returns:
        The normalisation layers whose statistics are frozen.
    """
    statistics = freeze_statistics(model)
    watch_structure(model)
    watch_counts(model)
    count_steps(model, name)  # before the first forward is watched, since inspecting a weight would count as reading it
    watch(model)
    return statistics


def stop_watching_training(model: nn.Module) -> None:
    """Watch neither the first forward nor the first steps."""
    stop_watching(model)
    stop_counting(model)


def watch_what_is_left(model: nn.Module, *, adapters: bool) -> None:
    """After an adapter has gone: watch the structure of the others, or give the base back as it was.

    Args:
        model: The model.
        adapters: Whether it has others.
    """
    if adapters:
        watch_structure(model)
        return
    stop_watching_structure(model)
    thaw_statistics(model)
    restore_base(model)
    forget_counts(model)
