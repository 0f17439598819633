"""The buckets of a pack in one layer."""

from dataclasses import dataclass

from rankwise.pack.stacks.store import Store


@dataclass(frozen=True)
class LayerSlot:
    """A bucket in a layer.

    Args:
        i: Its number.
        start, stop: The places of its adapters in the pack.
        adapts: Whether it has A and B here.
        trains_layer: Whether it trains the layer's own parameters.
    """

    i: int
    start: int
    stop: int
    adapts: bool
    trains_layer: bool


def slots_in(module: str, store: Store) -> list[LayerSlot]:
    """All buckets, in order, with what they do in a module."""
    parts: list[LayerSlot] = []
    start = 0
    for i, bucket in enumerate(store.buckets):
        stop = start + len(bucket)
        trains_layer = any(name.rpartition(".")[0] == module for name in bucket.members[0].trained_parameters)
        parts.append(LayerSlot(i, start, stop, bucket.adapts(module), trains_layer))
        start = stop
    return parts
