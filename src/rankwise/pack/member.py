"""What one adapter of a pack is."""

from dataclasses import dataclass, field

from rankwise.lora.config import LoRAConfig
from rankwise.pack.optimisers import AdamW, Optimiser


@dataclass(frozen=True, kw_only=True)
class Member:
    """One adapter of a pack: what it trains, from which seed, and how its optimiser is set.

    Args:
        name: Its name in reports and files; unique in the pack.
        seed: Fixes the order of its data and its noise. Members of one seed see the same batches and masks.
        lora: The adapter, or None when nothing is trained low-rank.
        whole: Names of modules whose own parameters are trained whole, each member having its own copy
            (a new head; for full fine-tuning every module that has parameters).
        whole_rate: Learning rate of what is trained whole, as a multiple of the adapter's: a new head has to move
            further than A and B.
        whole_rate_for: Those of `whole` that `whole_rate` is meant for, the others taking the rate itself; None for
            all. A new head needs it in full fine-tuning too, and the layers below do not.
        optimiser: Its optimiser's settings; all members of a pack have one optimiser.
    """

    name: str
    seed: int = 0
    lora: LoRAConfig | None = None
    whole: tuple[str, ...] = ()
    whole_rate: float = 1.0
    whole_rate_for: tuple[str, ...] | None = None
    optimiser: Optimiser = field(default_factory=AdamW)

    def rate_of(self, parameter: str) -> float:
        """The learning rate of a parameter trained whole, as a multiple of the adapter's."""
        if self.whole_rate_for is None or parameter.rpartition(".")[0] in self.whole_rate_for:
            return self.whole_rate
        return 1.0
