"""What to train next: the adaptive plan as a pure function of the results so far.

Sizes are tried by bisection from the middle: where one is shown to lie within the tolerance, smaller ones are tried,
where it is shown not to, larger ones. An open one gets more seeds, with the reference, until it is decided, until
the seeds are used up, or until no number of seeds could decide; then it counts as failed and larger ones are tried. A
size that failed gets one more chance at a neighbouring learning rate before the plan ends below the answer.

Everything is recomputed from the comparisons each time, so a plan that is resumed takes the same path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rankwise.sweeps.choose.comparison import Comparison
from rankwise.sweeps.choose.wording import probability

STARTING_SEEDS = 3
"""Seeds with which a size is first compared: fewer can't separate luck from size."""

BELIEVED_FROM = 4
"""Seeds from which the estimate of the seeds still needed is trusted."""

DOUBT = 3
"""Factor by which the estimate may be too large before that: few seeds give a poor estimate of the spread."""

LARGER_AFTER_OPEN = 3
"""Larger sizes to try after one that no number of seeds could decide."""


@dataclass(frozen=True)
class Ladder:
    """Sizes of one kind (the same targets and variant), from the smallest to the largest.

    Args:
        names: Configurations with fewer trainable parameters than the reference.
    """

    names: tuple[str, ...]

    @property
    def middle(self) -> str:
        """The size that the plan starts with."""
        return self.names[len(self.names) // 2]


@dataclass(frozen=True)
class Step:
    """What to do next.

    Args:
        kind: "train" a configuration at the starting seeds, give it "seeds", or try a "neighbour" of its learning rate;
            "end" when there is nothing left to do.
        name: The configuration; "" at the end.
        seeds: Its number of seeds after the step.
        path: The configurations decided or abandoned so far.
        in_play: Of "seeds" the sizes that may be asked for with as many seeds once the next one is shown, and itself:
            smaller ones that are open.
        foreseen: Of "seeds" the size whose neighbouring rate is tried next if all sizes are shown that more seeds can
            help; "" where something else follows.
    """

    kind: Literal["train", "seeds", "neighbour", "end"]
    name: str
    seeds: int
    path: tuple[str, ...]
    in_play: tuple[str, ...] = ()
    foreseen: str = ""


def next_step(
    ladder: Ladder,
    compared: Callable[[str], Comparison | None],
    *,
    most_seeds: int,
    neighbours_tried: Callable[[str], bool],
    at_once: int = 1,
) -> Step:
    """Find the next step on a ladder.

    Args:
        ladder: The sizes.
        compared: Configuration -> its comparison with the reference so far; None where it was not trained.
        most_seeds: The most seeds.
        neighbours_tried: Configuration -> whether the neighbours of its learning rate were tried, or there are none.
        at_once: Seeds that may be added in one step, where it needs as many.
    """
    low, high = -1, len(ladder.names)
    at = ladder.names.index(ladder.middle) if ladder.names else 0
    path: list[str] = []
    open_failures = 0
    start = min(STARTING_SEEDS, most_seeds)
    while low + 1 < high:
        name = ladder.names[at]
        comparison = compared(name)
        if comparison is None or comparison.n_seeds < start:
            return Step("train", name, start, tuple(path))
        largest = at == len(ladder.names) - 1
        if comparison.state == "open" and _seeds_can_help(comparison, most_seeds, largest):
            wanted = comparison.more_seeds_needed or 1
            more = max(1, min(wanted, at_once, most_seeds - comparison.n_seeds))
            others = [(other, compared(other)) for other in ladder.names[low + 1 : at + 1]]
            in_play = tuple(other for other, its in others if its is None or its.state == "open")
            then = next_step(
                ladder,
                lambda other: _hoped(compared(other), most_seeds, other == ladder.names[-1]),
                most_seeds=most_seeds,
                neighbours_tried=neighbours_tried,
            )
            foreseen = then.name if then.kind == "neighbour" else ""
            return Step("seeds", name, comparison.n_seeds + more, tuple(path), in_play, foreseen)
        path.append(name)
        if comparison.state == "shown":
            high = at
        else:
            low = at
            open_failures += comparison.state == "open"
            if open_failures > LARGER_AFTER_OPEN:
                break
        at = (low + high) // 2
    failed = ladder.names[low] if low >= 0 else None
    if failed is not None and not neighbours_tried(failed):
        last = compared(failed)
        return Step("neighbour", failed, start if last is None else last.n_seeds, tuple(path))
    return Step("end", "", 0, tuple(path))


def _hoped(comparison: Comparison | None, most_seeds: int, largest: bool) -> Comparison | None:
    """A comparison as it ends if more seeds show what they can."""
    if comparison is None or comparison.state != "open" or not _seeds_can_help(comparison, most_seeds, largest):
        return comparison
    return replace(comparison, state="shown")


def _seeds_can_help(comparison: Comparison, most_seeds: int, largest: bool) -> bool:
    """Whether more seeds may show that a size lies within the tolerance; of the largest, also that it does not: only
    that shows that nothing smaller will do."""
    if comparison.n_seeds >= most_seeds:
        return False
    more = comparison.more_seeds_needed
    believed = comparison.n_seeds >= BELIEVED_FROM
    if more is None or ((comparison.p_within or 0.0) < 0.5 and not (largest and believed)):
        return False
    return comparison.n_seeds + more <= most_seeds * (1 if believed else DOUBT)


def neighbour_rates(tried: Sequence[float], grid: Sequence[float], smaller_than_middle: bool) -> list[float]:
    """The next learning rate worth trying: the best rate rises with rank, by at most one step.

    Args:
        tried: Rates of the configuration so far.
        grid: Rates there are.
        smaller_than_middle: Whether the configuration is smaller than the one that gave it its rate.

    Returns:
        At most one rate; none at the end of the grid.

    Examples:
        >>> neighbour_rates([1e-3], [3e-4, 1e-3, 3e-3], smaller_than_middle=True)
        [0.0003]
        >>> neighbour_rates([3e-3], [3e-4, 1e-3, 3e-3], smaller_than_middle=False)
        [0.001]
    """
    order = sorted(set(grid) | set(tried))
    below = [lr for lr in order if lr < min(tried)]
    above = [lr for lr in order if lr > max(tried)]
    nearest = [below[-1:], above[:1]]
    for rates in nearest if smaller_than_middle else reversed(nearest):
        if rates:
            return rates
    return []


def step_sentences(step: Step, compared: Callable[[str], Comparison | None], label: Callable[[str], str]) -> str:
    """What was decided last, and what trains next, for the log.

    Args:
        step: What to do next, and not the end.
        compared: As in `next_step`.
        label: A configuration's label in sentences; "" stands for the reference.
    """
    decided = [
        f"{label(name)} {STATE_PHRASES[c.state]}"
        + ("" if c.p_within is None else f" ({probability(c.p_within)}, {c.n_seeds} seeds)")
        for name in dict.fromkeys([*step.path[-1:], step.name])
        if (c := compared(name)) is not None
    ]
    following = {
        "train": f"{label(step.name)} with {step.seeds} seeds",
        "seeds": f"{step.seeds} seeds of {label(step.name)} and {label('')}",
        "neighbour": f"{label(step.name)} at a neighbouring learning rate",
    }[step.kind]
    if step.foreseen:
        following += f", and {label(step.foreseen)} at a neighbouring learning rate"
    return f"{'; '.join(decided)}. Next: {following}." if decided else f"Next: {following}."


STATE_PHRASES = {
    "shown": "is shown to be within the tolerance",
    "not": "is shown not to be",
    "open": "is open",
}
