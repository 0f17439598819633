"""The modules that a PEFT file's settings name, by PEFT's rules."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rankwise.adapter_files.peft.regexes import compiled


class PeftTargets:
    """`target_modules` with `exclude_modules`, `modules_to_save` and `layers_to_transform`, as one predicate.

    A list names paths or their ends after a dot, a string is one regular expression for the whole path. Layer
    numbers count for the ends only; the number is the first one in the path, or the one after `layers_pattern`.

    Args:
        fields: The settings, whose types are right.

    Examples:
        >>> targets = PeftTargets({"target_modules": ["up"], "layers_to_transform": [1]})
        >>> [name for name in ("up", "h.layers.0.up", "h.layers.1.up", "h.layers.1.down") if targets(name)]
        ['up', 'h.layers.1.up']
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.wanted = _test_of(fields.get("target_modules"))
        self.excluded = _test_of(fields.get("exclude_modules"))
        self.exact = {*fields["target_modules"]} if isinstance(fields.get("target_modules"), list) else set[str]()
        self.saved = [compiled(rf"(^|.*\.){name}($|\..*)", name) for name in fields.get("modules_to_save") or []]
        layers, pattern = fields.get("layers_to_transform"), fields.get("layers_pattern") or []
        numbered = isinstance(fields.get("target_modules"), list) and layers not in (None, [])
        self.layers = {*(layers if isinstance(layers, list) else [layers])} if numbered else None
        self.numbers = [
            compiled(rf"(?:^|.*?\.){name}\.(\d+)\.", name)
            for name in ([pattern] if isinstance(pattern, str) else pattern)
        ] or [re.compile(r".*?\.[^.]*\.(\d+)\.")]

    def __call__(self, name: str, module: nn.Module | None = None) -> bool:
        """Tell whether the settings name the module of this path."""
        if self.excluded(name) or any(saved.match(name) for saved in self.saved) or not self.wanted(name):
            return False
        if self.layers is None or name in self.exact:
            return True
        number = next((found[1] for form in self.numbers if (found := form.match(name))), None)
        return number is not None and int(number) in self.layers


def _test_of(patterns: str | list[str] | None) -> Callable[[str], Any]:
    if isinstance(patterns, str):
        return compiled(patterns, patterns).fullmatch
    names = {*(patterns or [])}
    # Looked up, not searched: 2,000 names over 2,000 modules stay cheap.
    return lambda path: any(tail in names for tail in _tails(path))


def _tails(path: str) -> list[str]:
    pieces = path.split(".")
    return [".".join(pieces[start:]) for start in range(len(pieces))]
