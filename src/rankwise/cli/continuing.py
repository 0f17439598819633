"""The settings of a resumed run, or of a finished run that is extended by seeds and ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import CheckpointError, ConfigError
from rankwise.sweeps.choose.deciding import Deciding

EXTENDED = ("digits", "sweep")
"""Commands that seeds and ranks can be added to."""

CHANGEABLE = ("max-runs", "max-minutes", "compressed", "squeeze-steps")
"""Settings that an extended run may change: they train nothing otherwise."""


def settings_of(directory: Path, more_seeds: int | None, more_ranks: Sequence[int] | None) -> dict[str, Any]:
    """The settings of the next run: the unfinished run's, or the finished run's with the additions.

    Args:
        directory: The run directory.
        more_seeds: Seeds to add to a finished run.
        more_ranks: Ranks to add to it.

    Returns:
        Command -> its settings, as config.yaml has them.

    Raises:
        CheckpointError: There is no such run.
        ConfigError: Nothing can be added, or not this.
    """
    import yaml

    from rankwise.sweeps.storage.directory import can_resume
    from rankwise.sweeps.storage.owned import UNFINISHED, holds_results

    more = more_seeds is not None or more_ranks is not None
    if more and can_resume(directory):
        raise CheckpointError(
            f"{directory} holds an unfinished run; finish it first with --resume {directory}, without --more-seeds and "
            "--more-ranks."
        )
    if more and not holds_results(directory):
        raise CheckpointError(f"{directory} holds no finished run that seeds or ranks could be added to.")
    if not more and not can_resume(directory):
        words = " To its finished run --more-seeds and --more-ranks add some." if holds_results(directory) else ""
        raise CheckpointError(f"{directory} holds no unfinished run; --resume takes the directory of one.{words}")
    path = directory / "config.yaml" if more else directory / UNFINISHED / "config.yaml"
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is damaged, so the run can't be continued; start it again.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is damaged, so the run can't be continued; start it again.")
    return extended(settings, more_seeds, more_ranks) if more else settings  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def extended(settings: dict[str, Any], more_seeds: int | None, more_ranks: Sequence[int] | None) -> dict[str, Any]:
    """Settings of a finished run with seeds and ranks added.

    An extended run keeps its way of validating (each seed on its own rows, or all on the same), whatever the new number
    of seeds.

    Raises:
        ConfigError: The command takes no more seeds and ranks, or there is nothing to add.

    Examples:
        >>> extended({"digits": {"ranks": [1, 4], "seeds": [0, 1], "plan": "grid"}}, 1, [2])
        {'digits': {'ranks': [1, 2, 4], 'seeds': [0, 1, 2], 'plan': 'grid'}}
    """
    command, begun = next(iter(settings.items()))
    if command not in EXTENDED:
        raise ConfigError(
            f"Seeds and ranks can't be added to a run of rankwise {command}; they can to one of rankwise "
            f"{' and '.join(EXTENDED)}."
        )
    changed = dict(begun)
    if more_seeds is not None:
        if more_seeds < 0:
            raise ConfigError(f"--more-seeds is {more_seeds}; give the number of seeds to add, such as 3.")
        deciding = Deciding(plan=begun.get("plan", "auto"))
        before = deciding.seeds(tuple(begun["seeds"]) if begun.get("seeds") else None)
        first = max(before) + 1
        changed["seeds"] = [*before, *range(first, first + more_seeds)]
        rotated = deciding.rotates(len(before))
        if begun.get("rotate") is None and rotated != deciding.rotates(len(changed["seeds"])):
            changed["rotate"] = rotated
    if more_ranks is not None:
        ranks: list[int] = begun["ranks"]
        if known := sorted({*ranks} & {*more_ranks}):
            raise ConfigError(f"--more-ranks names {known}, which the run has already; it has {ranks}.")
        changed["ranks"] = sorted({*ranks, *more_ranks})
    return {command: changed}
