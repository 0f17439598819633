"""The comparison of subspaces as text, for the page."""

from collections.abc import Iterator

from rankwise.report.subspaces.compared import MOST, Subspaces


def subspace_rows(found: Subspaces) -> list[tuple[str, dict[str, str]]]:
    """Return (module, cells by heading): similarities with those of random directions, and amplification factors."""
    paths = list(found.overlaps[0].by_module)
    return [(path, dict(_cells(found, path))) for path in paths]


def _cells(found: Subspaces, path: str) -> Iterator[tuple[str, str]]:
    for overlap in found.overlaps:
        if path in overlap.by_module:
            yield f"{overlap.one}, in {overlap.other}", f"{overlap.leading[path]:.2f}"
            yield f"random, {overlap.other}", f"{overlap.random[path]:.2f}"
    for label, modules in found.amplified.items():
        one = modules.get(path)
        yield f"amplification, {label}", "" if one is None else f"{one.factor:.3g}"


def subspace_legend(found: Subspaces) -> list[str]:
    """Return what the figure and the table show, in sentences."""
    lines = [
        f"Similarity of the first {MOST} directions (or of all, where there are fewer) that the updates read, their "
        "right singular vectors: 1 where the one subspace holds the other; of random directions it is max(i, j) / d.",
        "Adapters of different seeds are compared: A of one seed starts alike at every rank.",
    ]
    if found.amplified:
        lines.append(
            "Amplification: the Frobenius norm of the update over that of the base's weight in the update's "
            "directions. A large factor says that the update raises what the base has, and hardly uses."
        )
    return [*lines, "As in Hu et al., LoRA, 2021, sections 7.2 and 7.3."]
