"""The optimisers that packs have, by name."""

from rankwise.pack.adamw import PackedAdamW
from rankwise.pack.optimiser import PackedOptimiser
from rankwise.pack.sgd import PackedSGD

OPTIMISERS: dict[str, type[PackedOptimiser]] = {"adamw": PackedAdamW, "sgd": PackedSGD}
"""Name -> what takes the steps. Adapters of one pack have one of them."""
