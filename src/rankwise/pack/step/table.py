"""The optimisers that packs have, by name."""

from rankwise.pack.step.adamw import PackedAdamW
from rankwise.pack.step.muon import PackedMuon
from rankwise.pack.step.optimiser import PackedOptimiser
from rankwise.pack.step.sgd import PackedSGD

OPTIMISERS: dict[str, type[PackedOptimiser]] = {
    kind.settings.name: kind for kind in (PackedAdamW, PackedSGD, PackedMuon)
}
"""Name -> what takes the steps. Adapters of one pack have one of them."""
