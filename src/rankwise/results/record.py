"""JSON objects as types, and back: what all parts of `results.json` have in common."""

from typing import Any, cast

import msgspec
from msgspec import UNSET

OTHERS = "others"
"""The attribute of an `OpenRecord` with the keys that the type doesn't name."""


class Record(msgspec.Struct, kw_only=True):
    """A JSON object with its keys as attributes.

    The keys of the file work too, and `dict(record)` is its content.

    Examples:
        >>> from rankwise.results.origin import MetricInfo
        >>> metric = MetricInfo(name="accuracy", higher_is_better=True)
        >>> metric.name, metric["name"]
        ('accuracy', 'accuracy')
    """

    def keys(self) -> list[str]:
        """The keys that the file has."""
        return [*self.content()]

    def __getitem__(self, key: str) -> Any:
        return self.content()[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where the file has no such key."""
        return self.content().get(key, default)

    def content(self) -> dict[str, Any]:
        """The fields as in the file, with records unconverted."""
        content: dict[str, Any] = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            content |= value if name == OTHERS and isinstance(self, OpenRecord) else {name: value}
        return {key: value for key, value in content.items() if value is not UNSET}


class OpenRecord(Record, kw_only=True):
    """A JSON object that may have further keys; they are in the attribute `others`."""


def plain(value: Any) -> Any:
    """Return a record as what JSON has: dictionaries, lists, text, numbers, true, false, null.

    Examples:
        >>> plain(Record())
        {}
    """
    if isinstance(value, Record):
        return {key: plain(entry) for key, entry in value.content().items()}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in cast("dict[str, Any]", value).items()}
    return [plain(entry) for entry in cast("list[Any]", value)] if isinstance(value, list | tuple) else value
