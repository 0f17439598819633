"""The baselines of adapters: the head alone, and full fine-tuning."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from rankwise.pack.resolved import AdapterState
from rankwise.sweeps.candidates.grid import BASELINE_SHARE, HEAD_TIMES, Candidate, modules_with_parameters
from rankwise.train.settings import Training


def baselines(
    model: nn.Module,
    head: tuple[str, ...],
    training: Training,
    lrs: tuple[float, ...],
    full: bool | Sequence[float],
    head_lrs: Sequence[float] | None = None,
    start: Callable[[int], AdapterState] | None = None,
    head_rate: float = 1.0,
) -> list[Candidate]:
    """The baselines of adapters: the head alone, and full fine-tuning.

    Args:
        model: The base.
        head: Modules that are trained in full with every adapter.
        training: As of the adapters.
        lrs: Learning rates of the adapters.
        full: Whether full fine-tuning is trained, or at which learning rates.
        head_lrs: Learning rates of the head alone; None takes ten times `lrs`.
        start: Seed -> tensors of the head to start from.
        head_rate: Learning rate of the head of an adapter, as a multiple of the adapter's. In full fine-tuning, at
            a tenth of the rates, the head learns as fast as with an adapter.
    """
    begun: dict[str, Any] = {} if start is None else {"start": start}
    found: list[Candidate] = []
    if head:
        rates = head_lrs or [HEAD_TIMES * lr for lr in lrs]
        found.append(
            Candidate(
                name="head",
                label="head alone",
                method="head",
                training=training,
                lrs=_plain(rates),
                modules_to_save=head,
                **begun,
            )
        )
    if full is not False:
        rates = [BASELINE_SHARE * lr for lr in lrs] if full is True else full
        found.append(
            Candidate(
                name="full",
                label="full fine-tuning",
                method="full",
                training=training,
                lrs=_plain(rates),
                modules_to_save=modules_with_parameters(model),
                head_lr_multiplier=head_rate / BASELINE_SHARE if head else 1.0,
                head_lr_multiplier_for=head,
                **begun,
            )
        )
    return found


def _plain(rates: Sequence[float]) -> tuple[float, ...]:
    """Rates without the last bits of a multiplication: 0.003, not 0.0030000000000000005."""
    return tuple(float(f"{rate:.6g}") for rate in rates)
