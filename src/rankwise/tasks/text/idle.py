"""Settings that would have no effect with others: refused, as a user who gives them expects one."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rankwise.errors import ConfigError
from rankwise.tasks.settings import defaults_of, flag, flat


@dataclass(frozen=True)
class _Idle:
    """Settings without effect.

    Args:
        names: The settings.
        where: Whether these options leave them without effect.
        because: Why, in words.
    """

    names: tuple[str, ...]
    where: Callable[[SimpleNamespace], bool]
    because: str


_OF_ADAPTERS = ("alpha", "dropout", "target_modules", "exclude_modules", "init", "scaling", "variant")

_RULES = (
    _Idle(
        ("loss_on", "chat", "chat_template", "separator"),
        lambda options: options.task == "classify",
        "in --task classify, whose texts have labels and no answers",
    ),
    _Idle(
        ("labels", "pooling", "head_lr", "head_rate"),
        lambda options: options.task == "sft",
        "in --task sft, whose models have no classifier",
    ),
    _Idle(
        ("max_length", "labels", "pooling", "loss_on", "chat", "chat_template", "separator", "join"),
        lambda options: options.task == "images",
        "in --task images, which reads no texts",
    ),
    _Idle(("validation_share",), lambda options: options.validation is not None, "with --validation"),
    _Idle(("test_share",), lambda options: options.test is not None, "with --test"),
    _Idle(("baseline_lr",), lambda options: not options.baseline, "with --no-baseline"),
    _Idle(("baseline_lr",), lambda options: options.quantize is not None, "with --quantize: there is no full one"),
    _Idle(("search_rungs",), lambda options: options.search == 0, "with --search 0"),
    _Idle(
        _OF_ADAPTERS,
        lambda options: options.replaces_rank,
        "with --init-from, which brings the adapter's own",
    ),
)


def check_idle(options: Any) -> None:
    """Refuse a setting that has no effect.

    Args:
        options: Of a command.

    Raises:
        ConfigError: There is one.
    """
    values, defaults = flat(options), defaults_of(type(options))
    # `rankwise train` has no grid, and the adapter that it trains on takes the place of its rank.
    asked = SimpleNamespace(**values, replaces_rank=bool(values["init_from"]) and "baseline" not in values)
    for rule in _RULES:
        given = [name for name in rule.names if name in values and values[name] != defaults[name]]
        if given and rule.where(asked):
            raise ConfigError(f"{flag(given[0])} has no effect {rule.because}; leave it out.")
