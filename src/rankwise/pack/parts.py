"""What each bucket of a pack does in one layer."""

from dataclasses import dataclass

from rankwise.pack.store import Store


@dataclass(frozen=True)
class Part:
    """A bucket in a layer.

    Args:
        i: Its number.
        start, stop: The places of its adapters in the pack.
        adapts: Whether it has A and B here.
        whole: Whether it trains the layer's own parameters.
    """

    i: int
    start: int
    stop: int
    adapts: bool
    whole: bool


def parts_of(module: str, store: Store) -> list[Part]:
    """All buckets, in order, with what they do in a module."""
    parts: list[Part] = []
    start = 0
    for i, bucket in enumerate(store.buckets):
        stop = start + len(bucket)
        whole = any(name.rpartition(".")[0] == module for name in bucket.members[0].whole)
        parts.append(Part(i, start, stop, bucket.adapts(module), whole))
        start = stop
    return parts
