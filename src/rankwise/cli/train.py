"""`rankwise train`."""

from typing import TYPE_CHECKING

from rankwise.cli import training
from rankwise.cli.app import app
from rankwise.cli.training import How, Outcome
from rankwise.tasks.text.options import TrainOptions

if TYPE_CHECKING:
    from rankwise.experiment import Place
    from rankwise.train.live import Progress


@app.command
def train(options: TrainOptions, *, how: How | None = None) -> int:
    """Train one adapter of a language model on a file of examples.

    What it gives is what a sweep gives, with one run: test figures, curve, page, and the adapter in PEFT's format.
    """

    def run(place: "Place", progress: "Progress") -> Outcome:
        from rankwise.tasks.text.run import run_text

        return run_text(options, place, progress)

    return training.train("train", options.settings(), how or How(), run)
