"""`rankwise digits`."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rankwise.cli.app import MAIN, TRAINING, app
from rankwise.cli.training import RunOptions, run_command
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.tasks.flags import DECIDING, listed
from rankwise.tasks.options import DigitsOptions, parse_numbers, parse_rates, parse_seeds
from rankwise.tasks.text.options import parse_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment
    from rankwise.train.events import Observers


@app.command
def digits(
    *,
    ranks: Annotated[tuple[int, ...] | None, listed(parse_numbers), Parameter(group=MAIN)] = None,
    seeds: Annotated[tuple[int, ...] | None, listed(parse_seeds), Parameter(group=MAIN)] = None,
    protocol: Annotated[str, Parameter(group=MAIN)] = "standard",
    data: Annotated[str, Parameter(group=MAIN)] = "embedded",
    epochs: Annotated[int | None, Parameter(group=MAIN)] = None,
    batch_size: Annotated[int | None, Parameter(group=TRAINING)] = None,
    lr: Annotated[tuple[float, ...] | None, listed(parse_rates), Parameter(group=MAIN)] = None,
    baseline_lr: Annotated[tuple[float, ...] | None, listed(parse_rates), Parameter(group=MAIN)] = None,
    alpha: Annotated[float | None, Parameter(group=MAIN)] = None,
    optimiser: Annotated[str, Parameter(group=TRAINING)] = "adamw",
    variant: Annotated[tuple[str, ...], listed(parse_names), Parameter(group=TRAINING)] = ("lora",),
    rungs: Annotated[tuple[int, ...] | None, listed(parse_numbers), Parameter(group=TRAINING)] = None,
    deciding: Annotated[Deciding | None, Parameter(name="*", group=DECIDING)] = None,
    device: Annotated[str, Parameter(group=MAIN)] = "auto",
    run_options: RunOptions | None = None,
) -> int:
    """Train LoRA at several ranks, and full fine-tuning, on handwritten digits.

    Example: rankwise digits --ranks 1,2,4,8 --seeds 3

    A small network that knows the digits 0-4 learns 5-9. The answer is the fewest trainable parameters that come
    within the tolerance of full fine-tuning, with a table, two figures and a page.

    Parameters
    ----------
    ranks:
        LoRA ranks: 1,2,4 or a range, 1:64:x2 (1, 2, 4, ... 64). [default: 1:64:x2]
    seeds:
        How many seeds, or a list of them: 3, or 0,7; of the adaptive plan at most. [default: 16; of a grid 3]
    protocol:
        "standard": equal budgets, learning rates chosen on validation data. "published": the notebook's own settings.
    data:
        "embedded" (10,000 images in the package), "mnist" (70,000, downloaded once: 12 MB), or a folder of IDX files.
    epochs:
        Passes over the training data, at most. [default: 60; published: 100]
    batch_size:
        Images a step. [default: 64]
    lr:
        Learning rates of LoRA, the best of which is chosen for each rank: 3e-4,1e-3. [default: the protocol's]
    baseline_lr:
        Learning rates of full fine-tuning. [default: the protocol's]
    alpha:
        Numerator of the scale alpha / r. [default: 32; published: r, so that the scale is 1]
    optimiser:
        Optimiser of all runs, such as adamw or sgd; a name that isn't known lists them.
    variant:
        What is trained in a layer: lora, dora, ...; of several each is tried at every rank. A name that isn't known
        lists them.
    rungs:
        Epochs after which the worse half of each configuration's learning rates leaves, and ranks that a smaller one
        clearly beats: 4,12. [default: none; all train to their end]
    device:
        Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS (untested), then the CPU.
    """
    run_options = run_options or RunOptions()
    given: dict[str, Any] = {"ranks": ranks, "deciding": deciding}
    options = DigitsOptions(
        protocol=protocol,
        data=data,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        baseline_lr=baseline_lr,
        alpha=alpha,
        optimiser=optimiser,
        variant=variant,
        rungs=rungs,
        seeds=seeds,
        device=device,
        **{key: value for key, value in given.items() if value is not None},
    )

    def make(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.tasks.digits.run import make_digits

        return make_digits(options, observers, base)

    return run_command("digits", options.settings(), run_options, make)
