"""What to ship, in words: the second verdict of a sweep."""

from rankwise.report import numbers
from rankwise.results import Results
from rankwise.results.compressed import CompressedConfiguration
from rankwise.sweeps.choose.wording import probability


def ship_words(results: Results) -> list[str]:
    """Say which adapter to ship, where cut ones were candidates; empty where none was, or nothing is gained."""
    compressed, answer = results.compressed, results.answer
    ship = compressed.ship if compressed else None
    if not compressed or ship is None or answer is None or ship.verdict == "no_gain":
        return []
    cut = {c.name: c for c in compressed.configurations}
    if ship.verdict == "shown" and ship.name in cut:
        return [_cut(results, cut[ship.name], compressed.steps)]
    if ship.verdict == "shown":
        label = chosen.label if (chosen := results.configuration(ship.name)) else ship.name
        return [f"To ship: {label} as it was trained; no adapter cut to fewer parameters is shown to do."]
    leaning = None if ship.leaning is None else cut.get(ship.leaning.name)
    towards = ""
    if leaning is not None:
        p = "" if leaning.p_within is None else f" ({probability(leaning.p_within)})"
        towards = f"; {leaning.label} may do{p}"
    if ship.verdict == "nothing_smaller":
        return ["To ship: the same; every adapter that was cut is shown not to do."]
    return [f"To ship: the same; no adapter that was cut is shown to do{towards}."]


def _cut(results: Results, c: CompressedConfiguration, steps: int | None) -> str:
    name, value = numbers.words(results.metric.name), c.mean if steps is None else c.repaired and c.repaired.mean
    answer = results.answer
    trained = None if answer is None else results.configuration(answer.name)
    share = ""
    if answer is not None and answer.verdict == "shown" and trained is not None and trained.trainable_parameters:
        share = f" ({numbers.percent(c.parameters / trained.trainable_parameters)} of {trained.label})"
    repaired = "" if steps is None else f", trained {steps:,} steps further"
    p = "" if c.p_within is None else f"; P = {probability(c.p_within)}"
    return (
        f"To ship: {c.label}{repaired}, {numbers.count(c.parameters)} parameters{share}, has a test {name} of "
        f"{numbers.metric(value)}{p}."
    )
