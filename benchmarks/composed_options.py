"""Options of a command, from settings by name: what the command line does with flags."""

from dataclasses import fields
from typing import Any, TypeVar

from rankwise.tasks.settings import group_of

Composed = TypeVar("Composed")


def compose(kind: type[Composed], **settings: Any) -> Composed:
    """Options composed from settings by name, each put into the group that declares it; a group may be given whole.

    Args:
        kind: The options' class.
        settings: Name -> value.
    """
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        group = group_of(field)
        if group is not None and field.name not in settings:
            names = {one.name for one in fields(group)}
            settings[field.name] = group(**{name: settings.pop(name) for name in names & settings.keys()})
    return kind(**settings)
