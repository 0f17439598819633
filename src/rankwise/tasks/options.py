"""Options of the digits experiment. The command line reads this file without loading torch."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise.errors import ConfigError, suggest
from rankwise.requirements import require
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.sweeps.choose.rule import accuracy_tolerance
from rankwise.tasks.flags import DECIDING, MAIN, TRAINING
from rankwise.tasks.settings import (
    Alphas,
    Device,
    Inits,
    LrRatio,
    OptimiserName,
    Ranks,
    Rates,
    Rungs,
    Seeds,
    Variants,
    WholeNumber,
    flag,
    plain_settings,
)

PROTOCOLS = ("standard", "published")


@Parameter(name="*", group=MAIN)
@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Settings of `rankwise digits`; None means the protocol's own value.

    Args:
        protocol: "standard": equal budgets, learning rates chosen on validation data. "published": the notebook's own
            settings.
        data: "embedded" (10,000 images in the package), "mnist" (70,000, downloaded once: 12 MB), or a folder of IDX
            files.
        epochs: Passes over the training data, at most. [default: 60; published: 100]
        batch_size: Images a step. [default: 64]
        lr: Learning rates of LoRA, the best of which is chosen for each rank: 3e-4,1e-3. [default: the protocol's]
        baseline_lr: Learning rates of full fine-tuning. [default: the protocol's]
        alpha: Numerator of the scale alpha / r; each of several is tried: 16,32. [default: 32; published: r, for
            a scale of 1]
        init: How A and B start: kaiming, gaussian, notebook, pissa, olora, orthogonal, eva, lora-ga; each of several
            is tried. [default: kaiming; published: notebook]
        rungs: Epochs after which the worse half of each configuration's learning rates leaves, and ranks that a smaller
            one clearly beats: 4,12. [default: none; all train to their end]
        precision: How runs compute: float32, or bf16 (products of linear layers in bfloat16, all else in float32; the
            base is pretrained in float32). auto takes bf16 on CUDA devices that have it, else float32.
        deciding: What is asked of the answer, and how runs are planned.
    """

    ranks: Ranks = (1, 2, 4, 8, 16, 32, 64)
    seeds: Seeds | None = None
    protocol: str = "standard"
    data: str = "embedded"
    epochs: WholeNumber | None = None
    batch_size: Annotated[WholeNumber | None, Parameter(group=TRAINING)] = None
    lr: Rates | None = None
    baseline_lr: Rates | None = None
    alpha: Alphas | None = None
    optimiser: OptimiserName = "adamw"
    variant: Annotated[Variants, Parameter(group=TRAINING)] = ("lora",)
    lr_ratio: LrRatio = 1.0
    init: Annotated[Inits | None, Parameter(group=TRAINING)] = None
    rungs: Annotated[Rungs | None, Parameter(group=TRAINING)] = None
    device: Device = "auto"
    precision: Annotated[str, Parameter(group=TRAINING)] = "auto"
    deciding: Annotated[Deciding, Parameter(name="*", group=DECIDING)] = field(default_factory=Deciding)

    def __post_init__(self) -> None:
        require(self, flag)
        if self.protocol == "right":
            # Its name in earlier versions.
            object.__setattr__(self, "protocol", "standard")
        if self.protocol not in PROTOCOLS:
            raise ConfigError(
                f'Protocol "{self.protocol}" is not known; there are "standard" (equal budgets) and '
                f'"published" (the notebook\'s own settings).{suggest(self.protocol, PROTOCOLS)}'
            )
        accuracy_tolerance(self.deciding.tolerance)
        if self.protocol == "published":
            # The notebook trains everything, on one split.
            object.__setattr__(self, "deciding", replace(self.deciding, plan="grid", rotate=False))
        elif self.deciding.curve is None:
            object.__setattr__(self, "deciding", replace(self.deciding, curve=True))

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds; of an adaptive plan at most these."""
        return self.deciding.seeds(self.seeds)

    def settings(self) -> dict[str, Any]:
        """The complete settings as a file for --config has them: flag -> plain value. Runs of earlier versions have no
        precision."""
        settings = plain_settings(self)
        return {key: value for key, value in settings.items() if (key, value) != ("precision", "auto")}
