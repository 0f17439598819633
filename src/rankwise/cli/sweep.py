"""`rankwise sweep`."""

from typing import TYPE_CHECKING

from rankwise.cli.app import app
from rankwise.cli.training import RunOptions, run_command
from rankwise.tasks.text.options import SweepOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment
    from rankwise.train.events import Observers


@app.command
def sweep(options: SweepOptions, *, run_options: RunOptions | None = None) -> int:
    """Find the smallest adapter that does the job, for a model of texts or images and your examples.

    Example: rankwise sweep --model sentence-transformers/all-MiniLM-L6-v2 --task classify --data train.csv

    Many ranks are trained together over the frozen base, as are full fine-tuning and, for a classifier, its head
    alone. The answer is the fewest trainable parameters that come within the tolerance of the reference, with a table,
    figures, a page, and every adapter in PEFT's format.
    """

    def make(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.tasks.text.run import make_text

        return make_text(options, observers)  # the base is read again from where it was

    return run_command("sweep", options.settings(), run_options or RunOptions(), make, forecast=True)
