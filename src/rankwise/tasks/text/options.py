"""Options of language models. The command line reads this file without loading torch."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise.errors import ConfigError, suggest
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.tasks.flags import DECIDING, MAIN
from rankwise.tasks.settings import flag, plain_settings
from rankwise.tasks.text.groups import (
    DEFAULT_RANK,
    AdapterOptions,
    BaseOptions,
    DataOptions,
    FormOptions,
    GridOptions,
    OneRun,
    TrainingOptions,
)
from rankwise.tasks.text.idle import check_idle

TASKS = {
    "classify": "texts with labels",
    "sft": "texts to imitate",
    "images": "images with labels",
}
"""Task -> what its examples are."""


def check_task(task: str) -> None:
    """Refuse a task that there is not.

    Raises:
        ConfigError: There is none of that name.
    """
    if task not in TASKS:
        known = ", ".join(f"{name} ({examples})" for name, examples in TASKS.items())
        raise ConfigError(f'--task is "{task}"; it is one of {known}.{suggest(task, TASKS)}')


@Parameter(name="*", group=MAIN)
@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Settings of every command that trains a language model; None means that the value follows from the task, the
    model or the data.

    Args:
        model: The base: a folder, a .gguf file, or a name on the Hugging Face hub.
        task: "classify" (texts with labels), "sft" (texts to imitate) or "images" (images with labels).
        data: Training examples: a .jsonl, .json, .csv, .tsv or .parquet file, or a hub name. Images: a folder with a
            folder for each label, or a file with the columns path and label.
        examples: Where further examples are, and which are used.
        adapters: What an adapter is.
        training: How every run is trained.
        form: How texts, labels and answers are taken.
        base: How the base is loaded.
    """

    model: str
    task: str
    data: str
    examples: DataOptions = field(default_factory=DataOptions)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    form: FormOptions = field(default_factory=FormOptions)
    base: BaseOptions = field(default_factory=BaseOptions)

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.form.join and self.task != "sft":
            raise ConfigError("--join joins texts to imitate (--task sft); texts with labels stay apart.")
        check_idle(self)

    def settings(self) -> dict[str, Any]:
        """The complete settings as a file for --config has them: flag -> plain value."""
        plain = plain_settings(self)
        if self.task != "sft":
            del plain["date"]  # only conversations are dated
        plain["columns"] = ",".join(f"{role}={column}" for role, column in self.examples.columns)
        return {key: value for key, value in plain.items() if value not in ("", [])}


@Parameter(name="*", group=MAIN)
@dataclass(frozen=True, kw_only=True)
class SweepOptions(TextOptions):
    """Settings of `rankwise sweep`.

    Args:
        grid: What is tried.
        deciding: What is asked of the answer, and how runs are planned.
    """

    grid: GridOptions = field(default_factory=GridOptions)
    deciding: Annotated[Deciding, Parameter(name="*", group=DECIDING)] = field(default_factory=Deciding)

    @property
    def fresh_ranks(self) -> tuple[int, ...]:
        """The ranks at which adapters are trained from the beginning."""
        return self.grid.ranks

    @property
    def compares(self) -> bool:
        """Whether the head alone and full fine-tuning are trained beside the adapters."""
        return True

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds; of an adaptive plan at most these."""
        return self.deciding.seeds(self.grid.seeds)


@Parameter(name="*", group=MAIN)
@dataclass(frozen=True, kw_only=True)
class TrainOptions(TextOptions):
    """Settings of `rankwise train`, which trains one adapter.

    Args:
        run: What is trained.
    """

    run: OneRun = field(default_factory=OneRun)

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, given in (
            ("ranks", self.run.ranks),
            ("seeds", self.run.seeds),
            ("lr", self.run.lr),
            *(
                (name, getattr(self.adapters, name))
                for name in ("variant", "init", "target_modules", "alpha", "scaling")
            ),
        ):
            if len(given) != 1:
                raise ConfigError(
                    f"rankwise train trains one adapter, and {flag(what)} names {len(given)}; give one, or run "
                    "rankwise sweep."
                )
        started = self.run.init_from
        if len(started) > 1:
            raise ConfigError(f"--init-from names {len(started)} adapters; rankwise train trains one.")
        if started and self.run.ranks != (DEFAULT_RANK,):
            raise ConfigError(
                f"--rank is {self.run.ranks[0]}, and --init-from brings its own rank; leave out one of them."
            )

    @property
    def grid(self) -> GridOptions:
        """The grid of the one run."""
        return self.run.as_grid()

    @property
    def deciding(self) -> Deciding:
        """There is nothing to decide."""
        return Deciding(plan="grid")

    @property
    def fresh_ranks(self) -> tuple[int, ...]:
        """The rank, where no adapter is trained on."""
        return () if self.run.init_from else self.run.ranks

    @property
    def compares(self) -> bool:
        """There is nothing to compare."""
        return False

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seed."""
        return self.run.seeds


Trains = SweepOptions | TrainOptions
"""Settings of a command that trains."""
