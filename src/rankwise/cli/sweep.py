"""`rankwise sweep`."""

from typing import TYPE_CHECKING

from rankwise.cli.app import app
from rankwise.cli.training import How, Outcome, train
from rankwise.tasks.text.options import TextOptions

if TYPE_CHECKING:
    from rankwise.experiment import Place
    from rankwise.train.live import Progress


@app.command
def sweep(options: TextOptions, *, how: How | None = None) -> int:
    """Find the smallest adapter that does the job, for a language model and a file of examples.

    Many ranks are trained together over the frozen base, beside full fine-tuning and, for a classifier, its head
    alone. The answer is the fewest trainable parameters that come within the tolerance of the reference, with a table,
    two figures, a page, and every adapter in PEFT's format.
    """

    def run(place: "Place", progress: "Progress") -> Outcome:
        from rankwise.tasks.text.run import run_text

        return run_text(options, place, progress)

    return train("sweep", options.settings(), how or How(), run)
