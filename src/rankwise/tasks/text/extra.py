"""The packages of an extra are loaded where they are used; without one, a line says what to install."""

from collections.abc import Generator
from contextlib import contextmanager

from rankwise.errors import ConfigError


@contextmanager
def requires_extra(what: str, extra: str = "text") -> Generator[None]:
    """Import packages of an extra inside this block.

    Args:
        what: What needs them, for the message; a plural.
        extra: The extra that has them.

    Raises:
        ConfigError: One of them is not installed.

    Examples:
        >>> with requires_extra("crystal balls"):
        ...     import crystal_ball
        Traceback (most recent call last):
        rankwise.errors.ConfigError: crystal balls need the package "crystal_ball", of the extra "text":
        run pip install ".[text]" in a checkout of Rankwise.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{what} need the package "{error.name}", of the extra "{extra}": run pip install ".[{extra}]" in a '
            "checkout of Rankwise."
        ) from error
