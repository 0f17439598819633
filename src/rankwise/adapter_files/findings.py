"""Faults of a file: an error, or a line of the report if the caller is lenient."""

from rankwise.errors import AdapterFileError


class Findings:
    """Collects what doesn't fit between a file and what it is read for.

    Args:
        strict: Whether the first finding is an error.

    Examples:
        >>> lenient = Findings(strict=False)
        >>> lenient.add("A tensor is missing.")
        >>> lenient.listed
        ['A tensor is missing.']
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.listed: list[str] = []

    def add(self, message: str) -> None:
        """Raise with this message, or list it.

        Raises:
            AdapterFileError: Reading is strict.
        """
        if self.strict:
            raise AdapterFileError(message)
        self.listed.append(message)
