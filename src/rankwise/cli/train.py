"""`rankwise train`."""

from typing import TYPE_CHECKING

from rankwise.cli import training
from rankwise.cli.app import app
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
    """

    def make(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.tasks.text.run import make_text

        return make_text(options, observers, base)

    return training.run_command("train", options.settings(), run_options or RunOptions(), make, forecast=True)
