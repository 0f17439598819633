"""Configurations from a user's arguments."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.naming import distinct_names, label_in_words
from rankwise.sweeps.candidates.user_values import as_list
from rankwise.sweeps.candidates.warm_start import candidate_from
from rankwise.train.settings import Training

Config = int | LoRAConfig | str | Path
"""A rank, an adapter's settings, or the folder of a saved adapter to start from."""

_LIST = re.compile(r"[\s\[(]*\d+(\s*[,; ]\s*\d+)+[\s\])]*")
"""A list of ranks as a text."""


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
        named = list(zip(distinct_names(listed), listed, strict=True))
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
    if isinstance(config, str) and config.strip().lstrip("+-").isdigit():
        raise ConfigError(f'The rank "{config}" is a text; give it as a whole number: {config.strip()}.')
    if isinstance(config, str) and _LIST.fullmatch(config):
        numbers = ", ".join(re.findall(r"\d+", config))
        raise ConfigError(f'The ranks "{config}" are a text; give them as whole numbers: [{numbers}].')
    if isinstance(config, str | Path):
        return candidate_from(model, Path(config), training, lrs, name=name, head=head)
    lora = config if isinstance(config, LoRAConfig) else LoRAConfig(r=config)
    return Candidate(
        name=name,
        label=label_in_words(name, lora),
        method="lora",
        training=training,
        lrs=lrs,
        lora=lora,
        modules_to_save=head,
    )
