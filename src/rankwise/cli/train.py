"""`rankwise train`."""

from typing import TYPE_CHECKING

from rankwise.cli import training
from rankwise.cli.app import EXIT_OK, app
from rankwise.cli.processes import joined, started_together, train_beside, with_processes
from rankwise.cli.training import RunOptions
from rankwise.tasks.text.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment
    from rankwise.train.events import Observers


@app.command
def train(options: TrainOptions, *, run_options: RunOptions | None = None) -> int:
    """Train one adapter of a language model on a file of examples.

    Example: rankwise train --model HuggingFaceTB/SmolLM2-135M --task sft --data train.jsonl --rank 8

    The output is a sweep's, with one run: test figures, curve, page, and the adapter in PEFT's format. To
    compare it with full fine-tuning or other settings, run rankwise sweep.

    Several GPUs train it together, each on a part of every batch: torchrun --nproc-per-node 2 --no-python rankwise
    train ...
    """

    def make(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.tasks.text.run import make_text

        return make_text(options, observers)  # the base is read again from where it was

    run_options = run_options or RunOptions()
    if not started_together():
        return training.run_command("train", options.settings(), run_options, make, forecast=True)
    with joined(options.base.device, run_options) as processes:
        shared = with_processes(make, processes)
        if processes.rank == 0:
            return training.run_command("train", options.settings(), run_options, shared, forecast=True)
        return EXIT_OK if run_options.print_config or run_options.dry_run else train_beside(shared)
