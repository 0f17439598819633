"""The words and numbers that `results.json` is made of."""

from typing import Annotated, Literal

import msgspec

Method = Literal["lora", "full", "head", "base"]
"""LoRA, full fine-tuning, the head alone, or the base as it is."""

Status = Literal["finished", "stopped", "pruned", "diverged", "failed"]
"""The end of a run; failed: the loss or the metric raised an error on its outputs."""

Verdict = Literal["shown", "nothing_smaller", "no_gain", "undecided"]
"""shown: the configuration named is the smallest shown to lie within the tolerance; nothing_smaller: all smaller ones
are shown not to; no_gain: fine-tuning is not shown to beat the base; undecided: everything else."""

ToleranceState = Literal["shown", "not", "open"]
"""Whether a configuration is shown to lie within the tolerance, shown not to, or neither."""

Floor = Literal["base", "constant"]
"""The floor of fine-tuning: the untrained base, or the best constant prediction."""

Count = Annotated[int, msgspec.Meta(ge=0)]

Interval = tuple[float, float]
"""The lowest and the highest value of a 95% interval."""
