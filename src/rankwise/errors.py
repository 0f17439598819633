"""The exceptions a user can meet.

One family: the command line prints any of them as one line and exits with code 2. A message gives the
fact with the values received, the rule, and what to do.
"""

import difflib
from collections.abc import Iterable


class RankwiseError(Exception):
    """Something the user gave can't be used; the message says what and how to mend it."""


class ConfigError(RankwiseError, ValueError):
    """A setting has a value that can't be used."""


class TargetError(RankwiseError, ValueError):
    """A target pattern matches nothing, or matches something that can't be adapted."""


class AdapterError(RankwiseError, ValueError):
    """An adapter is missing, exists already, or is in the wrong state for what was asked."""


class AdapterFileError(RankwiseError, ValueError):
    """An adapter file is damaged, foreign, or made for another model."""


class DataError(RankwiseError, ValueError):
    """Data is missing, truncated, or not what it was said to be."""


class OutputError(RankwiseError, ValueError):
    """The place for results can't be used."""


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
