"""The exceptions a user can meet.

One family: the command line prints any of them as one line and exits with code 2. A message gives the
fact with the values received, the rule, and what to do.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class RankwiseError(Exception):
    """The user's input can't be used; the message says why and how to fix it."""


class ConfigError(RankwiseError, ValueError):
    """A setting has a value that can't be used."""


class TargetError(RankwiseError, ValueError):
    """A target pattern matches nothing, or matches something that can't be adapted."""


class AdapterError(RankwiseError, ValueError):
    """An adapter is missing, exists already, or is in the wrong state for the request."""


class AdapterFileError(RankwiseError, ValueError):
    """An adapter file is damaged, foreign, or made for another model."""


class DataError(RankwiseError, ValueError):
    """Data is missing, truncated, or not as declared."""


class OutputError(RankwiseError, ValueError):
    """The output directory can't be used."""


class BusyError(OutputError):
    """Another process is using this directory; try again when it has ended."""


class CheckpointError(RankwiseError, ValueError):
    """A checkpoint, or the unfinished run it belongs to, can't be used."""


class PackError(RankwiseError, ValueError):
    """These adapters, or this model, can't be trained in one pack."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest known word, or an empty string.

    Examples:
        >>> suggest("q_prj", ["q_proj", "k_proj"])
        ' Did you mean "q_proj"?'
        >>> suggest("zzz", ["q_proj"])
        ''
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


_flags: ContextVar[bool] = ContextVar("flags", default=False)


@contextmanager
def flags_named() -> Generator[None]:
    """Let `option` return command-line flags inside this block."""
    token = _flags.set(True)
    try:
        yield
    finally:
        _flags.reset(token)


def option(name: str, flag: str | None = None) -> str:
    """Return the user's name of an option: an argument in Python, a flag on the command line.

    Args:
        name: The argument.
        flag: The command-line flag, where its name differs.

    Examples:
        >>> option("batch_size")
        'batch_size'
        >>> with flags_named():
        ...     option("batch_size")
        '--batch-size'
    """
    return "--" + (flag or name).replace("_", "-") if _flags.get() else name


def known_arguments(instead: Mapping[str, str]) -> Callable[[Function], Function]:
    """Refuse an unknown argument with one of these errors, which suggests the argument that was meant.

    Args:
        instead: Other libraries' names of arguments -> what to write here.

    Examples:
        >>> @known_arguments({"colour": "give color"})
        ... def draw(*, color="red"): ...
        >>> draw(colour="blue")
        Traceback (most recent call last):
        rankwise.errors.ConfigError: draw has no "colour"; give color.
    """

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        known = None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else parameters.keys()
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            for argument in () if known is None else given.keys() - known:
                meant = instead.get(argument)
                advice = f"; {meant}." if meant else f".{suggest(argument, known or ())}"
                raise ConfigError(f'{name} has no "{argument}"{advice}')
            return function(*args, **given)

        return called  # pyright: ignore[reportReturnType]

    return decorate


def renamed_arguments(**now: str) -> Callable[[Function], Function]:
    """Also take arguments under their names in earlier versions.

    Args:
        now: Earlier name -> today's.

    Examples:
        >>> @renamed_arguments(hue="color")
        ... def draw(*, color="red"):
        ...     print(color)
        >>> draw(hue="blue")
        blue
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            return function(*args, **{now.get(name, name): value for name, value in given.items()})

        return called  # pyright: ignore[reportReturnType]

    return decorate


@contextmanager
def arguments_named() -> Generator[None]:
    """Make errors that leave this block name Python arguments instead of command-line flags.

    Examples:
        >>> with arguments_named():
        ...     raise ConfigError("--max-length is 0; leave --max-length out.")
        Traceback (most recent call last):
        rankwise.errors.ConfigError: max_length is 0; leave max_length out.
    """
    try:
        yield
    except RankwiseError as error:
        if not _flags.get():
            text = re.sub(r"(?<![\w-])--([a-z][a-z-]*[a-z])", lambda flag: flag[1].replace("-", "_"), str(error))
            error.args = (text,)
        raise
