"""Settings of commands from a YAML file, whose values are read literally."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from cyclopts.config import Dict

from rankwise.errors import ConfigError, suggest

PLACE_FLAGS = ("config", "resume", "print-config")
"""Flags for the source and target of settings: a file can't have them."""


class _Loader(yaml.SafeLoader):
    """YAML without the number forms that version 1.2 dropped: 1:8 was 68, 010 was 8, 1_000 was 1000."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'"{key.value}" is there twice', key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


_PLAIN = {"bool", "null", "merge"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Numbers and dates stay text: each flag's reader converts them.


def parse_settings(text: str) -> Any:
    """Read YAML: texts, lists and mappings, true, false and null; numbers and dates stay text.

    Raises:
        yaml.YAMLError: It is not YAML, or names a setting twice.

    Examples:
        >>> parse_settings("ranks: 1:8\\nepochs: 3\\nbaseline: no\\ndate: 2026-11-29")
        {'ranks': '1:8', 'epochs': '3', 'baseline': False, 'date': '2026-11-29'}
    """
    return yaml.load(text, Loader=_Loader)


def read_settings(path: Path, command: str | None, commands: list[str]) -> Dict:
    """Read a --config file.

    Args:
        path: The file.
        command: The command that is run, where one is named.
        commands: All commands.

    Raises:
        ConfigError: It is missing, or not YAML with the settings of commands, this one among them.
    """
    try:
        settings = parse_settings(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); --config takes a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not all(isinstance(value, dict) for value in settings.values()):
        raise ConfigError(
            f'{path} does not hold the settings of a command; write "digits:" and below it, indented, "ranks: [1, 2]".'
        )
    for name in sorted(settings.keys() - set(commands), key=str):
        raise ConfigError(
            f'{path} has settings of "{name}"; there are commands {", ".join(commands)}.{suggest(str(name), commands)}'
        )
    if command in commands and command not in settings:
        raise ConfigError(
            f"{path} has settings of {', '.join(settings)} and none of {command}, so nothing in it would be used; "
            f'write them below "{command}:".'
        )
    for options in settings.values():
        flags = [str(key).replace("_", "-") for key in options]
        if twice := next((flag for flag in flags if flags.count(flag) > 1), None):
            raise ConfigError(f'{path} has "{twice}" twice, with "-" and with "_"; leave one of them out.')
        if place := next((flag for flag in flags if flag in PLACE_FLAGS), None):
            raise ConfigError(f'{path} has "{place}", which is only a command-line flag; leave it out.')
    return as_config(settings, path)


def as_config(settings: dict[str, Any], path: Path) -> Dict:
    """Settings as the command line reads them."""
    for options in settings.values():
        for name in ("seeds", "seed"):
            # As text a list of one would read like a number of seeds.
            if isinstance(options.get(name), list):
                options[name] = "".join(f"{seed}," for seed in options[name])
    return Dict(settings, source=str(path))
