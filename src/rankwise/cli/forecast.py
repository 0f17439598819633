"""What a run will take in memory, disk and time: before it starts, or in its place."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rankwise.experiment import Experiment, ExperimentFactory
    from rankwise.sweeps.run.forecast import Forecast
    from rankwise.train.events import Observers


def with_forecast(make: "ExperimentFactory", processes: int = 1) -> "ExperimentFactory":
    """Make the experiment's factory print a forecast too, for so many processes."""

    def make_and_tell(observers: "Observers", base: "Mapping[str, Tensor] | None") -> "Experiment":
        from rankwise.sweeps.run.forecast import forecast_sweep

        experiment = make(observers, base)
        if base is None:  # a resumed run has reported it
            experiment.check()
            found = forecast_sweep(experiment.stages(observers), processes)
            observers.message(f"It will take {_need(found)}. {' '.join(found.open)}")
        return experiment

    return make_and_tell


def _need(found: "Forecast") -> str:
    """Memory, disk and time in words."""
    from rankwise.report.numbers import duration_text, mebibytes

    peak, base = mebibytes(found.peak_bytes), mebibytes(found.base_bytes)
    program = f" and the program's {mebibytes(found.program_bytes)}" if found.program_bytes else ""
    disk = f"{mebibytes(found.disk_bytes)} MiB of disk, of which {mebibytes(found.adapter_bytes)} stay"
    memory = f"{peak} MiB of memory, the base's {base}{program} included"
    return f"at most {memory}, {disk}, and about {duration_text(found.seconds)}"


def print_forecast(make: "ExperimentFactory", processes: int, *, quiet: bool, as_json: bool) -> None:
    """Print what a command would train, and what that takes in so many processes."""
    from rankwise.show.live import progress
    from rankwise.sweeps.run.forecast import forecast_sweep
    from rankwise.train.events import Observers

    with Observers([progress("quiet" if quiet else "auto")]) as observers:
        experiment = make(observers, None)
        experiment.check()
        for line in [*experiment.power(), *experiment.doubts()]:
            observers.message(line)
        found = forecast_sweep(experiment.stages(observers), processes)
    _show_forecast(found, as_json=as_json)


def _show_forecast(found: "Forecast", *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rankwise.report.numbers import duration_text, mebibytes

    if as_json:
        print(json.dumps(found.plain()))
        return
    console = Console(soft_wrap=False)
    table = Table(box=None, header_style="")
    for column in ("pack", "for", "runs", "configurations", "epochs", "MiB", "time"):
        table.add_column(column, justify="left" if column in ("for", "configurations") else "right")
    for i, pack in enumerate(found.packs):
        names = [name if n == 1 else f"{n} x {name}" for name, n in pack.configurations.items()]
        numbers = (str(pack.epochs), mebibytes(pack.bytes), duration_text(pack.seconds))
        table.add_row(str(i), pack.stage, str(len(pack.runs)), Text(", ".join(names)), *numbers)
    console.print(table)
    limit = "" if found.limit is None else f" A pack may take {mebibytes(found.limit)} MiB."
    order = "one after another" if found.at_once == 1 else f"{found.at_once} at a time"
    packs = "1 pack" if len(found.packs) == 1 else f"{len(found.packs)} packs, {order}"
    console.print(
        f"{found.runs} runs in {packs}: {_need(found)}.{limit}",
        *found.open,
        "Nothing was written.",
        highlight=False,
        markup=False,
    )
