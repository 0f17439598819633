"""What is tried: configurations as a user gives them, and the baselines that they are held against."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.resolved import State
from rankwise.sweeps.given import as_list
from rankwise.sweeps.grid import BASELINE_SHARE, HEAD_TIMES, Candidate, modules_with_parameters
from rankwise.sweeps.naming import names_of
from rankwise.sweeps.starting import candidate_from
from rankwise.train.settings import Training

Config = int | LoRAConfig | str | Path
"""A rank, an adapter's settings, or the folder of a saved adapter to start from."""


def baselines(
    model: nn.Module,
    head: tuple[str, ...],
    training: Training,
    lrs: tuple[float, ...],
    full: bool | Sequence[float],
    head_lrs: Sequence[float] | None = None,
    start: Callable[[int], State] | None = None,
    head_rate: float = 1.0,
) -> list[Candidate]:
    """What adapters are held against: the head alone, and full fine-tuning.

    Args:
        model: The base.
        head: Modules that are trained whole with every adapter.
        training: As of the adapters.
        lrs: Learning rates of the adapters.
        full: Whether full fine-tuning is trained, or at which learning rates.
        head_lrs: Learning rates of the head alone; None takes ten times `lrs`.
        start: Seed -> tensors of the head to start from.
        head_rate: Learning rate of the head beside an adapter, as a multiple of the adapter's. In full fine-tuning, at
            a tenth of the rates, the head learns as fast as beside an adapter.
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
                whole=head,
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
                whole=modules_with_parameters(model),
                whole_rate=head_rate / BASELINE_SHARE if head else 1.0,
                whole_rate_for=head,
                **begun,
            )
        )
    return found


def _plain(rates: Sequence[float]) -> tuple[float, ...]:
    """Rates without the last bits of a multiplication: 0.003, not 0.0030000000000000005."""
    return tuple(float(f"{rate:.6g}") for rate in rates)


def candidates_of(
    model: nn.Module,
    configs: Config | Iterable[Config] | Mapping[str, Config | tuple[Config, Training]],
    head: tuple[str, ...],
    training: Training,
    lrs: tuple[float, ...],
) -> list[Candidate]:
    if isinstance(configs, Mapping):
        named = [(str(name), config) for name, config in configs.items()]
    else:
        listed = as_list(configs)
        named = list(zip(names_of(listed), listed, strict=True))
    if not named:
        raise ConfigError("The grid is empty; give at least one rank or LoRAConfig.")
    return [_candidate(model, name, config, head, training, lrs) for name, config in named]


def _candidate(
    model: nn.Module,
    name: str,
    config: Config | tuple[Config, Training],
    head: tuple[str, ...],
    training: Training,
    lrs: tuple[float, ...],
) -> Candidate:
    if isinstance(config, tuple):
        config, training = config
        lrs = (training.lr,) if training.has_lr else lrs
    if isinstance(config, str | Path):
        return candidate_from(model, Path(config), training, lrs, name=name, head=head)
    lora = config if isinstance(config, LoRAConfig) else LoRAConfig(r=config)
    by_rank = name == f"r{lora.r}" or name.startswith(f"r{lora.r} ")
    label = f"r = {lora.r}{', '.join(['', *name.split(' ', 1)[1:]])}" if by_rank else f"{name} (r = {lora.r})"
    return Candidate(
        name=name,
        label=label,
        method="lora",
        training=training,
        lrs=lrs,
        lora=lora,
        whole=head,
    )
