r"""Whether runs of full fine-tuning gain from training in one pack.

They have no product in common: each multiplies by its own weights. One pack of them saves only the fixed cost of
the model's calls (Python, autograd, launches), which it pays once in place of K times. So it pays where a run's own
step is short:

$$c M \ge s \left( \frac{32 P}{\beta} + \frac{6 P n}{\phi} \right)$$

with M modules at a fixed cost of c seconds each; P weights, of which a step moves 32 bytes each (weight, gradient and
two moments, read and written in float32) at a bandwidth of beta, and for which it multiplies 6 times a row at a rate
of phi; n rows; and s the least share of the time that is worth the memory of K sets of activations. Rows count once,
whatever their length, so what is compared is the least that a step can take.

Measured on one thread of a CPU, MLPs, 3 runs in one pack against one after another: a fixed cost of 3.1, 0.64, 0.17,
0.08 and 0.04 times the work gave 0.46, 0.66, 0.80, 0.89 and 0.93 of the time; MiniLM (0.06 and less) 1.00 to 1.19.
"""

from collections.abc import Sequence

import torch
from torch import nn

from rankwise.pack.resolved import resolve
from rankwise.sweeps.problem import Run

CALL = 1e-4
"""Seconds of a module's forward and backward pass that don't depend on its size."""

LEAST = 0.1
"""The share of a step's work that the fixed costs must reach for a pack to pay."""

MOVED = 32
"""Bytes of memory traffic for each trained number in a step."""


def pays(model: nn.Module, run: Run) -> bool:
    """Whether runs of full fine-tuning like this one gain from sharing a pack."""
    resolved = resolve(model, run.member)
    cuda = next(model.parameters()).device.type == "cuda"
    bandwidth = 2e12 if cuda else 1e10
    rate = 5e13 if cuda else 5e10 * torch.get_num_threads()
    numbers = resolved.parameter_count()
    work = MOVED * numbers / bandwidth + 6 * numbers * run.training.batch_size / rate
    return CALL * len(run.member.modules_to_save) >= LEAST * work


def apart(model: nn.Module, packs: Sequence[Sequence[Run]]) -> tuple[list[list[Run]], list[str]]:
    """Cut packs of full fine-tuning that don't pay into packs of one run.

    Args:
        model: The base.
        packs: Runs by pack.

    Returns:
        The packs, and what a user should know of them.
    """
    cut: list[list[Run]] = []
    notes: list[str] = []
    for pack in packs:
        if len(pack) == 1 or pack[0].method != "full" or pays(model, pack[0]):
            cut.append(list(pack))
            continue
        cut += [[run] for run in pack]
        numbers = resolve(model, pack[0].member).parameter_count()
        notes.append(
            f"The {len(pack)} runs of full fine-tuning train one after another: each has {numbers:,} weights of its "
            "own, and a step of one is long enough that a step of all at once would take no less time, and more "
            "memory."
        )
    return cut, notes
