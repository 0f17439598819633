"""Read the values of settings from text."""

import re
from pathlib import Path

from rankwise.errors import ConfigError, option


def parts(text: str) -> tuple[str, ...]:
    """Return the parts of a list that has commas or spaces between them.

    Examples:
        >>> parts("1, 2 4")
        ('1', '2', '4')
    """
    return tuple(re.split(r"\s*,\s*|\s+", text.strip()))


def parse_numbers(text: str) -> tuple[int, ...]:
    """Read "1,2,4", "1:64:x2" (doubling), "0:4" (0 to 4) or "2:10:2" (steps of 2).

    Raises:
        ConfigError: The text is none of these.

    Examples:
        >>> parse_numbers("1:64:x2")
        (1, 2, 4, 8, 16, 32, 64)
        >>> parse_numbers("1,3,5:6")
        (1, 3, 5, 6)
    """
    numbers: list[int] = []
    for part in parts(text):
        first, *rest = part.strip().split(":")
        last, step = [*rest, "", ""][:2]
        try:
            if len(rest) > 2:
                raise ValueError
            low, high, by = int(first), int(last or first), int(step.removeprefix("x") or 1)
        except ValueError:
            raise ConfigError(
                f'"{text}" is no list of whole numbers; write them as 1,2,4 or as a range: 1:64:x2, 0:4, 2:10:2.'
            ) from None
        multiplies = step.startswith("x")
        if by < (2 if multiplies else 1) or (multiplies and low < 1) or high < low:
            raise ConfigError(f'The range "{part}" holds no numbers; write first:last or first:last:step, going up.')
        while low <= high:
            numbers.append(low)
            low = low * by if multiplies else low + by
    return tuple(dict.fromkeys(numbers))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read a number of seeds ("5": 0 to 4) or a list of them ("0,7", "10:14", or "7," for one).

    Raises:
        ConfigError: It is neither, or no seeds.

    Examples:
        >>> parse_seeds("3"), parse_seeds("10:12"), parse_seeds("7,")
        ((0, 1, 2), (10, 11, 12), (7,))
    """
    if text.strip().isdecimal():
        if not int(text):
            raise ConfigError(f'{option("seeds")} is 0; give at least 1 ("0," is seed 0 alone).')
        return tuple(range(int(text)))
    return parse_numbers(text.strip().removesuffix(","))


def parse_rates(text: str) -> tuple[float, ...]:
    """Read learning rates: "1e-3" or "3e-4,1e-3".

    Raises:
        ConfigError: A part is no number.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in parts(text)))
    except ValueError:
        raise ConfigError(f'"{text}" is no list of learning rates; write them as 3e-4,1e-3.') from None


def parse_columns(text: str) -> tuple[tuple[str, str], ...]:
    """Read "prompt=mr,completion=ref".

    Raises:
        ConfigError: A part has no "=".

    Examples:
        >>> parse_columns("prompt=mr, completion=ref")
        (('prompt', 'mr'), ('completion', 'ref'))
    """
    parts = [part.strip().partition("=") for part in text.split(",")]
    if not all(role and equals and column for role, equals, column in parts):
        raise ConfigError(f'"{text}" names no columns; write them as role=column: prompt=mr,completion=ref.')
    return tuple((role.strip(), column.strip()) for role, _, column in parts)


def parse_names(text: str) -> tuple[str, ...]:
    """Read "q_proj,v_proj"; a regular expression ("re:...") is one name, commas and all.

    Examples:
        >>> parse_names("q_proj, v_proj"), parse_names("re:.*(q|v)_proj{1,2}")
        (('q_proj', 'v_proj'), ('re:.*(q|v)_proj{1,2}',))
    """
    return (text,) if text.startswith("re:") else tuple(part.strip() for part in text.split(",") if part.strip())


def parse_sets(text: str) -> tuple[tuple[str, ...], ...]:
    """Read sets of names with ";" between them: "q_proj,v_proj; all-linear".

    Examples:
        >>> parse_sets("q_proj,v_proj; all-linear")
        (('q_proj', 'v_proj'), ('all-linear',))
    """
    return tuple(names for part in text.split(";") if (names := parse_names(part.strip())))


def parse_floats(text: str) -> tuple[float, ...]:
    """Read "16" or "16,32".

    Raises:
        ConfigError: A part is no number.

    Examples:
        >>> parse_floats("16, 32")
        (16.0, 32.0)
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in parts(text)))
    except ValueError:
        raise ConfigError(f'"{text}" is no list of numbers; write them as 16,32.') from None


def parse_folders(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of folders; a folder that exists may have commas in its name.

    Examples:
        >>> parse_folders("nowhere/a, nowhere/b")
        ('nowhere/a', 'nowhere/b')
    """
    parts, found = text.split(","), list[str]()
    while parts:
        joined = (n for n in range(len(parts), 1, -1) if Path(",".join(parts[:n]).strip()).is_dir())
        n = next(joined, 1)
        found.append(",".join(parts[:n]).strip())
        parts = parts[n:]
    return tuple(folder for folder in found if folder)


def parse_separator(text: str) -> str:
    r"""Read a separator as a shell hands it on, where "\n" and "\t" are two characters each.

    Examples:
        >>> parse_separator(r" ->\n")
        ' ->\n'
    """
    return text.replace(r"\n", "\n").replace(r"\t", "\t")
