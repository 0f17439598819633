"""What the adaptive plan does next: a pure function of what is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from rankwise.sweeps.choose.adaptive import (
    BELIEVED_FROM,
    DOUBT,
    LARGER_AFTER_OPEN,
    STARTING_SEEDS,
    Ladder,
    Step,
    next_step,
)
from rankwise.sweeps.choose.comparison import Comparison

RANKS = Ladder(tuple(f"r{2**i}" for i in range(7)))
MOST = 16


@dataclass
class World:
    """Sizes with what they come to: from which number of seeds on they are shown, or shown not, to do.

    Args:
        ladder: The sizes.
        decided: Size -> (state, seeds from which on it is seen).
        seen_to_need: Size -> how many seeds the comparison says are needed in all; None: no number of them can decide.
            For those left out the truth.
        seeds: Size -> seeds it has.
        neighbours: Sizes whose neighbouring learning rate was tried.
        better: Sizes that come to something else at that rate.
        probable: Size -> the probability that it lies within the tolerance, where it is not .6.
    """

    ladder: Ladder
    decided: dict[str, tuple[str, int]]
    seen_to_need: dict[str, int | None] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    neighbours: set[str] = field(default_factory=set)
    better: dict[str, str] = field(default_factory=dict)
    probable: dict[str, float] = field(default_factory=dict)

    def compared(self, name: str) -> Comparison | None:
        n = self.seeds.get(name)
        if n is None:
            return None
        state, needed = self.decided[name]
        if name in self.neighbours and name in self.better:
            state = self.better[name]
        if n < needed:
            state = "open"
        total = self.seen_to_need.get(name, needed)
        more = 0 if state != "open" else None if total is None else max(total - n, 1)
        return Comparison(name, 0.0, None, None, self.probable.get(name, 0.6), n, state, more)

    def next(self, most: int = MOST, at_once: int = 1) -> Step:
        return next_step(
            self.ladder,
            self.compared,
            most_seeds=most,
            neighbours_tried=self.neighbours.__contains__,
            at_once=at_once,
        )

    def do(self, step: Step) -> None:
        if step.kind == "neighbour":
            self.neighbours.add(step.name)
        else:
            self.seeds[step.name] = step.seeds

    def walk(self, most: int = MOST, at_once: int = 1) -> list[tuple[str, str, int]]:
        """All steps, without the end."""
        steps: list[tuple[str, str, int]] = []
        while (step := self.next(most, at_once)).kind != "end":
            steps.append((step.kind, step.name, step.seeds))
            self.do(step)
            assert len(steps) < 200
        return steps


def world(first_shown: int, ladder: Ladder = RANKS, **given: object) -> World:
    """Sizes from a place on are shown to do, those before not, each at once."""
    states = {name: ("shown" if i >= first_shown else "not", 0) for i, name in enumerate(ladder.names)}
    return World(ladder, states, **given)  # pyright: ignore[reportArgumentType]


def test_the_path_is_a_bisection_from_the_middle() -> None:
    one = world(2)
    assert one.walk() == [
        ("train", "r8", 3),
        ("train", "r2", 3),
        ("train", "r4", 3),
        ("neighbour", "r2", 3),
    ]
    assert one.next().path == ("r8", "r2", "r4")


@pytest.mark.parametrize("n", range(1, 10))
def test_the_smallest_that_does_is_found_wherever_it_lies(n: int) -> None:
    ladder = Ladder(tuple(f"r{i}" for i in range(n)))
    for first in range(n + 1):
        one = world(first, ladder)
        steps = one.walk()
        shown = [name for name in ladder.names if one.seeds.get(name) and one.decided[name][0] == "shown"]
        assert shown[:1] == list(ladder.names[first : first + 1])
        assert first == 0 or ladder.names[first - 1] in one.seeds, "the next smaller one is shown not to"
        assert sum(kind == "train" for kind, _, _ in steps) <= n.bit_length()
        assert {seeds for _, _, seeds in steps} <= {STARTING_SEEDS}


def test_one_that_is_open_gets_seeds_until_it_is_decided() -> None:
    one = world(0)
    one.decided["r8"] = ("shown", 6)
    steps = one.walk()
    assert steps[:5] == [
        ("train", "r8", 3),
        ("seeds", "r8", 4),
        ("seeds", "r8", 5),
        ("seeds", "r8", 6),
        ("train", "r2", 3),
    ]
    assert one.seeds["r2"] == 3


def test_as_many_seeds_at_once_as_it_needs_and_may() -> None:
    for needed, at_once, expected in ((9, 4, [7, 9]), (5, 4, [5]), (9, 2, [5, 7, 9])):
        one = world(0)
        one.decided["r8"] = ("not", needed)
        assert [seeds for kind, _, seeds in one.walk(at_once=at_once) if kind == "seeds"] == expected


@pytest.mark.parametrize(("most", "given"), [(5, 5), (3, 3), (2, 2), (1, 1)])
def test_no_more_seeds_than_there_are(most: int, given: int) -> None:
    """It seems to need one more each time, and is never decided; then larger ones are tried."""
    one = world(4)
    one.decided["r8"] = ("not", 99)
    one.seen_to_need = {"r8": 0}
    one.walk(most)
    assert one.seeds["r8"] == given
    assert one.seeds["r32"] == min(most, STARTING_SEEDS)
    assert "r4" not in one.seeds


@pytest.mark.parametrize(
    ("total", "given"), [(None, 3), (MOST + 1, BELIEVED_FROM), (DOUBT * MOST, BELIEVED_FROM), (DOUBT * MOST + 1, 3)]
)
def test_seeds_that_could_not_decide_are_not_spent(total: int | None, given: int) -> None:
    """Of few seeds the estimate may be several times too large."""
    one = world(4)
    one.decided["r8"] = ("not", 99)
    one.seen_to_need = {"r8": total}
    steps = one.walk()
    assert steps[0] == ("train", "r8", 3)
    assert ("train", "r32", 3) in steps
    assert one.seeds["r8"] == given


def test_nor_on_one_that_is_likelier_outside() -> None:
    one = world(4, probable={"r8": 0.3})
    one.decided["r8"] = ("not", 9)
    assert one.walk()[:2] == [("train", "r8", 3), ("train", "r32", 3)]


def test_but_on_the_largest_which_tells_whether_anything_smaller_will_do() -> None:
    one = world(7)
    one.decided["r64"] = ("not", 9)
    one.probable["r64"] = 0.6
    while one.seeds.get("r64", 0) < BELIEVED_FROM:
        one.do(one.next())
    one.probable["r64"] = 0.3
    assert [step for step in one.walk() if step[1] == "r64"][-2:] == [("seeds", "r64", 9), ("neighbour", "r64", 9)]


def test_after_many_that_stay_open_larger_ones_are_given_up() -> None:
    ladder = Ladder(tuple(f"r{i}" for i in range(200)))
    one = World(ladder, dict.fromkeys(ladder.names, ("not", 99)), dict.fromkeys(ladder.names))
    trained = [name for kind, name, _ in one.walk() if kind == "train"]
    assert len(trained) == 1 + LARGER_AFTER_OPEN
    assert [int(name[1:]) for name in trained] == sorted(int(name[1:]) for name in trained)


def test_those_shown_not_to_do_are_no_reason_to_give_up() -> None:
    ladder = Ladder(tuple(f"r{i}" for i in range(200)))
    assert world(199, ladder).walk()[-2:] == [("train", "r199", 3), ("neighbour", "r198", 3)]


def test_a_neighbouring_rate_is_tried_once_before_the_end() -> None:
    for first in range(8):
        steps = world(first).walk()
        tried = [(i, name) for i, (kind, name, _) in enumerate(steps) if kind == "neighbour"]
        assert tried == ([] if first == 0 else [(len(steps) - 1, RANKS.names[first - 1])])


def test_a_neighbouring_rate_that_helps_leads_on() -> None:
    one = world(2)
    one.better = {"r2": "shown"}
    assert one.walk()[3:] == [("neighbour", "r2", 3), ("train", "r1", 3), ("neighbour", "r1", 3)]


def test_a_neighbouring_rate_has_the_seeds_of_the_first() -> None:
    one = world(1)
    one.decided["r1"] = ("not", 5)
    assert one.walk()[-1] == ("neighbour", "r1", 5)


def trained(open_sizes: dict[str, int], not_shown: Sequence[str]) -> World:
    """All ranks with three seeds: some open until they have so many, some shown not to do, the rest shown."""
    one = world(0)
    one.decided.update(dict.fromkeys(not_shown, ("not", STARTING_SEEDS)))
    one.decided.update({name: ("shown", seeds) for name, seeds in open_sizes.items()})
    one.seeds = dict.fromkeys(RANKS.names, STARTING_SEEDS)
    return one


def test_the_smaller_sizes_that_are_open_get_seeds_with_one_that_is() -> None:
    step = trained({"r2": 4, "r4": 5, "r8": 6, "r16": 4}, ["r1"]).next()
    assert (step.kind, step.name, step.in_play) == ("seeds", "r8", ("r2", "r4", "r8"))


def test_a_neighbouring_rate_is_foreseen_where_seeds_can_only_help() -> None:
    one = trained({"r4": 5, "r8": 6}, ["r1", "r2"])
    step = one.next()
    assert (step.kind, step.name, step.foreseen) == ("seeds", "r8", "r2")
    assert ("neighbour", "r2", 3) in one.walk(), "as it comes to pass"


def test_it_is_foreseen_of_the_size_that_more_seeds_can_not_help() -> None:
    one = trained({"r4": 9, "r8": 6}, ["r1", "r2"])
    one.probable["r4"] = 0.3
    assert one.next().foreseen == "r4"


@pytest.mark.parametrize("why", ["tried", "untrained", "the smallest does"])
def test_no_neighbouring_rate_is_foreseen_where_something_else_follows(why: str) -> None:
    one = trained({"r4": 5, "r8": 6}, [] if why == "the smallest does" else ["r1", "r2"])
    if why == "tried":
        one.neighbours.add("r2")
    if why == "untrained":
        del one.seeds["r4"]
    step = one.next()
    assert (step.kind, step.name, step.foreseen) == ("seeds", "r8", "")


@pytest.mark.parametrize("first", range(8))
@pytest.mark.parametrize("most", [1, 4, MOST])
def test_resumed_anywhere_it_takes_the_same_path(first: int, most: int) -> None:
    """Each step follows from the comparisons alone: asked again it is the same, and paths only grow."""

    def made() -> World:
        one = world(first)
        one.decided["r8"] = (one.decided["r8"][0], 6)
        return one

    whole = made().walk(most)
    for stopped_after in range(len(whole) + 1):
        one = made()
        before: tuple[str, ...] = ()
        for _ in range(stopped_after):
            step = one.next(most)
            assert step == one.next(most)
            assert step.path[: len(before)] == before
            before = step.path
            one.do(step)
        assert one.walk(most) == whole[stopped_after:]


def test_no_size_at_all() -> None:
    assert World(Ladder(()), {}).next() == Step("end", "", 0, ())
