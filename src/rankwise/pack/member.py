"""One adapter of a pack."""

from dataclasses import dataclass, field

from rankwise.errors import renamed_arguments
from rankwise.lora.config import LoRAConfig
from rankwise.pack.optimisers import AdamW, Optimiser


@dataclass(frozen=True, kw_only=True)
class Member:
    """One adapter of a pack: what it trains, from which seed, and how its optimiser is set.

    Args:
        name: Its name in reports and files; unique in the pack.
        seed: Fixes the order of its data and its noise. Members of one seed see the same batches and masks.
        lora: The adapter, or None when nothing is trained low-rank.
        modules_to_save: Names of modules whose own parameters are trained in full, in a copy for each member
            (a new head; for full fine-tuning every module that has parameters).
        head_lr_multiplier: Learning rate of `modules_to_save`, as a multiple of the adapter's: a new head has to move
            further than A and B.
        head_lr_multiplier_for: The modules that the multiplier applies to; None for all of `modules_to_save`. In full
            fine-tuning a new head needs it and the layers below don't.
        lr_ratio: Learning rate of B as a multiple of A's (LoRA+).
        optimiser: Its optimiser's settings; all members of a pack have one optimiser.
    """

    name: str
    seed: int = 0
    lora: LoRAConfig | None = None
    modules_to_save: tuple[str, ...] = ()
    head_lr_multiplier: float = 1.0
    head_lr_multiplier_for: tuple[str, ...] | None = None
    lr_ratio: float = 1.0
    optimiser: Optimiser = field(default_factory=AdamW)

    def rate_of(self, parameter: str) -> float:
        """The learning rate of a parameter trained in full, as a multiple of the adapter's."""
        if self.head_lr_multiplier_for is None or parameter.rpartition(".")[0] in self.head_lr_multiplier_for:
            return self.head_lr_multiplier
        return 1.0


Member.__init__ = renamed_arguments(
    whole="modules_to_save", whole_rate="head_lr_multiplier", whole_rate_for="head_lr_multiplier_for"
)(Member.__init__)
