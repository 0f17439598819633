"""Names of configurations, and of their runs, which are names of folders too."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError
from rankwise.lora.config import LoRAConfig

MOST_BYTES = 100
"""Of a name: with learning rate, seed and the endings of temporary files it must stay below the 255 of file systems."""


def check_name(name: str) -> None:
    """Refuse a name that can't be shown, or that no file can have.

    Raises:
        ConfigError: It is empty or too long, or has characters that aren't printable.
    """
    shown = name if len(name) <= 40 else name[:37] + "..."
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"A configuration is named {shown!r}; give it a name of printable characters.")
    if (size := len(name.encode())) > MOST_BYTES:
        raise ConfigError(
            f'The name "{shown}" of a configuration is {size} bytes long; at most {MOST_BYTES} are allowed.'
        )


def folder_name(name: str) -> str:
    """Return a name as a folder may have it on any system: letters, digits and . , = + @ - in it.

    Examples:
        >>> folder_name("r8 dora"), folder_name("../q_proj: r = 4"), folder_name("..")
        ('r8-dora', 'q_proj-r-=-4', '_')
    """
    plain = re.sub(r"[^\w.,=+@-]+", "-", unicodedata.normalize("NFC", name))
    # A first "=" or "-" would be a formula in a spreadsheet, or a flag.
    return plain.lstrip(".,=+@-").rstrip(".-") or "_"


def check_distinct(names: Iterable[str]) -> None:
    """Refuse names that differ only in what file systems don't tell apart.

    Raises:
        ConfigError: Two names are one folder.
    """
    seen: dict[str, str] = {}
    for name in names:
        folder = folder_name(name).casefold()
        if seen.setdefault(folder, name) != name:
            raise ConfigError(
                f'The names "{seen[folder]}" and "{name}" would be one folder; name the configurations differently.'
            )


def distinct_names(configs: Sequence[int | LoRAConfig | str | Path]) -> list[str]:
    """Name configurations by what tells them apart.

    Examples:
        >>> distinct_names([4, LoRAConfig(r=8), LoRAConfig(r=8, variant="dora"), "runs/last/best"])
        ['r4', 'r8', 'r8 dora', 'from-best']
        >>> distinct_names([LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]), LoRAConfig(r=4, alpha=8), 4])
        ['r4 q_proj,v_proj', 'r4 alpha 8', 'r4']
        >>> distinct_names([LoRAConfig(r=4, scaling="alpha/sqrt(r)"), 4])
        ['r4 rslora', 'r4']
    """
    paths = [Path(config) if isinstance(config, str | Path) else None for config in configs]
    short = [folder_name(path.name) for path in paths if path is not None]
    names: list[str] = []
    for config, path in zip(configs, paths, strict=True):
        if path is not None:
            last = folder_name(path.name)
            above = f"{path.resolve().parent.name}-" if short.count(last) > 1 else ""
            names.append(_cut(folder_name(f"from-{above}{last}")))
            continue
        lora = config if isinstance(config, LoRAConfig) else LoRAConfig(r=_rank(config))
        alike = [other if isinstance(other, LoRAConfig) else LoRAConfig() for other in configs if _r(other) == lora.r]
        names.append(_cut(" ".join([f"r{lora.r}", *_apart(lora, alike)])))
    return [name if (before := names[:i].count(name)) == 0 else f"{name} {before + 1}" for i, name in enumerate(names)]


def label_in_words(name: str, lora: LoRAConfig) -> str:
    """Return a configuration's name in words.

    Examples:
        >>> label_in_words("r8 dora", LoRAConfig(r=8)), label_in_words("mine", LoRAConfig(r=8))
        ('r = 8 dora', 'mine (r = 8)')
    """
    if name != f"r{lora.r}" and not name.startswith(f"r{lora.r} "):
        return f"{name} (r = {lora.r})"
    return f"r = {name.removeprefix('r')}"


def _cut(name: str) -> str:
    return name.encode()[: MOST_BYTES - 10].decode(errors="ignore").strip()


def _r(config: int | LoRAConfig | str | Path) -> int | None:
    return config.r if isinstance(config, LoRAConfig) else config if isinstance(config, int) else None


def _rank(config: Any) -> int:
    if isinstance(config, bool) or not isinstance(config, int):
        raise ConfigError(
            f"{config!r} is no configuration; give a rank (a whole number), a LoRAConfig or the folder of an adapter."
        )
    return config


def _apart(lora: LoRAConfig, alike: Sequence[LoRAConfig]) -> list[str]:
    """The settings of an adapter that are neither the default nor common to all."""
    default, words = LoRAConfig(), list[str]()
    for name in (field.name for field in fields(lora) if field.name not in ("r", "seed", "extra")):
        value = getattr(lora, name)
        if value != getattr(default, name) and any(getattr(other, name) != value for other in alike):
            words.append(WORDS.get(name, lambda value, name=name: name.replace("_", " "))(value))
    return words


def _patterns(value: Any) -> str:
    listed = [value] if isinstance(value, str) or callable(value) else list(value)
    text = ",".join(getattr(one, "__name__", str(one)) for one in listed)
    return text if len(text) <= 40 else text[:37] + "..."


WORDS: dict[str, Callable[[Any], str]] = {
    "variant": str,
    "init": str,
    "target_modules": _patterns,
    "exclude_modules": lambda value: f"without {_patterns(value)}",
    "modules_to_save": lambda value: f"with {_patterns(value)}",
    "scaling": lambda value: "rslora" if value == "alpha/sqrt(r)" else value.replace("/", " by "),
    "alpha": lambda value: f"alpha {value:g}",
    "dropout": lambda value: f"dropout {value:g}",
    "bias": lambda value: f"bias {value}",
}
"""Setting -> its value as a part of a name."""
