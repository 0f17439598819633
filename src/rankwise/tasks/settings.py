"""Settings that several commands have, each declared once: how it is read, what it must be, and its help.

A command's options are a dataclass whose fields are settings, or groups of them, which are dataclasses again. The
default stands at the field, as commands differ in it.
"""

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise.requirements import ALPHAS, AT_LEAST_ONE, POSITIVE, RANKS, RATES, RISING, SEEDS
from rankwise.tasks.flags import MAIN, TRAINING, listed
from rankwise.tasks.reading import (
    parse_columns,
    parse_floats,
    parse_folders,
    parse_names,
    parse_numbers,
    parse_rates,
    parse_seeds,
    parse_separator,
    parse_sets,
)

Ranks = Annotated[
    tuple[int, ...], listed(parse_numbers), RANKS, Parameter(group=MAIN, help="LoRA ranks: 1,2,4 or a range, 1:64:x2.")
]
Seeds = Annotated[
    tuple[int, ...],
    listed(parse_seeds),
    SEEDS,
    Parameter(
        group=MAIN,
        help="How many seeds, or a list of them: 3, or 0,7; of an adaptive plan at most. [default: 16; of a grid 3]",
    ),
]
Rates = Annotated[tuple[float, ...], listed(parse_rates), RATES]
Rungs = Annotated[tuple[int, ...], listed(parse_numbers), RISING]
WholeNumber = Annotated[int, AT_LEAST_ONE]
Positive = Annotated[float, POSITIVE]
Names = Annotated[tuple[str, ...], listed(parse_names)]
TargetSets = Annotated[tuple[tuple[str, ...], ...], listed(parse_sets, again_by=";")]
"""Sets of modules, each tried: --target-modules q,v --target-modules all-linear."""
Alphas = Annotated[tuple[float, ...], ALPHAS, listed(parse_floats)]
Folders = Annotated[tuple[str, ...], listed(parse_folders)]
Columns = Annotated[tuple[tuple[str, str], ...], listed(parse_columns), Parameter(show_default=False)]
Separator = Annotated[str, listed(parse_separator, spaces=False), Parameter(show_default=False)]
OptimiserName = Annotated[
    str,
    Parameter(group=TRAINING, help="Optimiser of all runs: adamw, sgd, muon."),
]
Variants = Annotated[
    Names,
    Parameter(help="What is trained in a layer: lora, lora-fa, dora, vera; of several each is tried at every rank."),
]
Inits = Annotated[
    Names,
    Parameter(
        help="How A and B start: kaiming, gaussian, notebook, pissa, olora, orthogonal, eva, loftq, lora-ga; each of "
        "several is tried."
    ),
]
LrRatio = Annotated[
    float,
    POSITIVE,
    Parameter(group=TRAINING, help="Learning rate of B as a multiple of A's (LoRA+ takes 16)."),
]
Device = Annotated[
    str,
    Parameter(help="Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS (untested), then the CPU."),
]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag that is given or left out."""


def flag(name: str) -> str:
    """The flag of a setting on the command line.

    Examples:
        >>> flag("batch_size")
        '--batch-size'
    """
    return "--" + name.replace("_", "-")


def flat(options: Any) -> dict[str, Any]:
    """Every setting by its name, those of groups among them."""
    found: dict[str, Any] = {}
    for field in fields(options):
        value = getattr(options, field.name)
        found |= flat(value) if is_dataclass(value) else {field.name: value}
    return found


def defaults_of(kind: Any) -> dict[str, Any]:
    """The default of every setting that has one."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        if (group := group_of(field)) is not None:
            found |= defaults_of(group)
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not MISSING:
            found[field.name] = field.default
    return found


def shared(options: Any, kind: Any, **changed: Any) -> dict[str, Any]:
    """The settings of a group that another dataclass has under the same name, with those that differ."""
    names = {field.name for field in fields(kind) if field.init}
    return {name: value for name, value in flat(options).items() if name in names} | changed


def group_of(field: Field[Any]) -> Any:
    """The class of a group of settings; None where a field is a setting itself."""
    return field.default_factory if is_dataclass(field.default_factory) else None


ADDED: dict[str, Any] = {"optimiser": "adamw", "variant": ("lora",), "lr_ratio": 1.0}
"""Settings that earlier versions lacked, with the value that does what these did: it is left out of settings, so that
their unfinished runs can be resumed."""


def plain_settings(options: Any) -> dict[str, Any]:
    """Settings as a file for --config has them: flag -> plain value, without those that are None."""
    given = {key: v for key, v in flat(options).items() if key not in ADDED or v != ADDED[key]}
    plain = {flag(key)[2:]: _plain(key, v) if isinstance(v, tuple) else v for key, v in given.items()}
    return {key: str(v) if hasattr(v, "__fspath__") else v for key, v in plain.items() if v is not None}


_ONCE = ("alpha", "init", "scaling")
"""Settings of which earlier versions had one value: one is written as they wrote it."""


def _plain(key: str, values: tuple[Any, ...]) -> Any:
    if key == "target_modules":
        return list(values[0]) if len(values) == 1 else "; ".join(",".join(names) for names in values)
    return values[0] if key in _ONCE and len(values) == 1 else list(values)
