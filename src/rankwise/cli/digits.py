"""`rankwise digits`."""

from typing import TYPE_CHECKING

from rankwise.cli.app import app
from rankwise.cli.training import RunOptions, run_command
from rankwise.tasks.options import DigitsOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment
    from rankwise.train.events import Observers


@app.command
def digits(*, options: DigitsOptions | None = None, run_options: RunOptions | None = None) -> int:
    """Train LoRA at several ranks, and full fine-tuning beside them, on handwritten digits.

    Example: rankwise digits --ranks 1,2,4,8 --seeds 3

    A small network that knows the digits 0-4 learns 5-9. The answer is the fewest trainable parameters that come
    within the tolerance of full fine-tuning, with a table, two figures and a page.
    """
    chosen = options or DigitsOptions()

    def make(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.tasks.digits.run import make_digits

        return make_digits(chosen, observers, base)

    return run_command("digits", chosen.settings(), run_options or RunOptions(), make)
