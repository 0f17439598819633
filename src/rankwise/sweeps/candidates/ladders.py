"""Candidates sorted into ladders, on which the adaptive plan steps up and down."""

from collections.abc import Sequence
from dataclasses import replace

from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.choose.adaptive import Ladder


def ladder_key(candidate: Candidate) -> str | None:
    """What candidates of one ladder have in common: the adapter's settings but rank and alpha; None without one."""
    return None if candidate.lora is None else str(replace(candidate.lora, r=2, alpha=1.0))


def ladders_of(sized: Sequence[Candidate]) -> list[Ladder]:
    """Candidates of one kind, whatever their rank, in one ladder each; the head alone is the smallest of the first.

    Alpha tells kinds apart where one rank has several; it may go with the rank.
    """
    kinds: dict[object, list[str]] = {}
    without = [ladder_key(c) for c in sized]
    for c, key in zip(sized, without, strict=True):
        alike = [o.lora for o, other in zip(sized, without, strict=True) if o.lora is not None and other == key]
        if c.lora is not None and len({lora.r for lora in alike}) < len(alike):
            kinds.setdefault((key, c.lora.alpha), []).append(c.name)
            continue
        kinds.setdefault(key, []).append(c.name)
    heads = kinds.pop(None, [])
    names = list(kinds.values())
    if not names:
        return [Ladder(tuple(heads))] if heads else []
    order = {c.name: i for i, c in enumerate(sized)}
    names[0] = sorted([*heads, *names[0]], key=order.__getitem__)
    return [Ladder(tuple(group)) for group in names]
