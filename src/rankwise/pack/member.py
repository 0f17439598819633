"""What one adapter of a pack is."""

from dataclasses import dataclass

from rankwise.lora.config import LoRAConfig


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
        optimiser: A name in `rankwise.pack.optimisers.OPTIMISERS`; all members of a pack have one.
        betas: AdamW's decay rates of the first and second moment.
        eps: AdamW's epsilon.
        momentum: SGD's.
        nesterov: Whether SGD's step is Nesterov's.
    """

    name: str
    seed: int = 0
    lora: LoRAConfig | None = None
    whole: tuple[str, ...] = ()
    whole_rate: float = 1.0
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
