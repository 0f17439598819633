"""Candidates sorted into ladders, on which the adaptive plan steps up and down."""

from collections.abc import Sequence
from dataclasses import replace

from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.choose.adaptive import Ladder


def kind_of(candidate: Candidate) -> str | None:
    """What candidates of one ladder have in common: the adapter's settings but rank and alpha; None without one."""
    return None if candidate.lora is None else str(replace(candidate.lora, r=1, alpha=1.0))


def ladders_of(sized: Sequence[Candidate]) -> list[Ladder]:
    """Candidates of one kind, whatever their rank, in one ladder each; the head alone is the smallest of the first."""
    kinds: dict[object, list[str]] = {}
    for c in sized:
        kinds.setdefault(kind_of(c), []).append(c.name)
    heads = kinds.pop(None, [])
    names = list(kinds.values())
    if not names:
        return [Ladder(tuple(heads))] if heads else []
    order = {c.name: i for i, c in enumerate(sized)}
    names[0] = sorted([*heads, *names[0]], key=order.__getitem__)
    return [Ladder(tuple(group)) for group in names]
