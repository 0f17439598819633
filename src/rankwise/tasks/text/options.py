"""What a user can set for a language model. Light: the command line reads it without loading torch."""

import datetime
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rankwise.errors import ConfigError, suggest
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.tasks.flags import DECIDING, flag_group, listed
from rankwise.tasks.options import parse_numbers, parse_rates, parse_seeds, plain_settings
from rankwise.tasks.text.idle import check_idle

TASKS = {
    "classify": "texts with labels",
    "sft": "texts to imitate",
    "images": "images with labels",
}
"""Task -> what its examples are."""

DEFAULT_RANK = 8
"""Of a single adapter."""


def check_task(task: str) -> None:
    """Refuse a task that there is not.

    Raises:
        ConfigError: There is none of that name.
    """
    if task not in TASKS:
        known = ", ".join(f"{name} ({examples})" for name, examples in TASKS.items())
        raise ConfigError(f'--task is "{task}"; it is one of {known}.{suggest(task, TASKS)}')


def parse_columns(text: str) -> tuple[tuple[str, str], ...]:
    """Read "prompt=mr,completion=ref".

    Raises:
        ConfigError: A part has no "=".

    Examples:
        >>> parse_columns("prompt=mr, completion=ref")
        (('prompt', 'mr'), ('completion', 'ref'))
    """
    parts = [part.strip().partition("=") for part in text.split(",")]
    if not all(role and equals and column for role, equals, column in parts):
        raise ConfigError(f'"{text}" names no columns; write them as role=column: prompt=mr,completion=ref.')
    return tuple((role.strip(), column.strip()) for role, _, column in parts)


def parse_names(text: str) -> tuple[str, ...]:
    """Read "q_proj,v_proj"; a regular expression ("re:...") is one name, commas and all.

    Examples:
        >>> parse_names("q_proj, v_proj"), parse_names("re:.*(q|v)_proj{1,2}")
        (('q_proj', 'v_proj'), ('re:.*(q|v)_proj{1,2}',))
    """
    return (text,) if text.startswith("re:") else tuple(part.strip() for part in text.split(",") if part.strip())


def parse_folders(text: str) -> tuple[str, ...]:
    """Read folders with commas between them; a comma in a folder's name is told by the folder that is there.

    Examples:
        >>> parse_folders("nowhere/a, nowhere/b")
        ('nowhere/a', 'nowhere/b')
    """
    parts, found = text.split(","), list[str]()
    while parts:
        joined = (n for n in range(len(parts), 1, -1) if Path(",".join(parts[:n]).strip()).is_dir())
        n = next(joined, 1)
        found.append(",".join(parts[:n]).strip())
        parts = parts[n:]
    return tuple(folder for folder in found if folder)


def parse_separator(text: str) -> str:
    r"""Read a separator as a shell hands it on, where "\n" and "\t" are two characters each.

    Examples:
        >>> parse_separator(r" ->\n")
        ' ->\n'
    """
    return text.replace(r"\n", "\n").replace(r"\t", "\t")


def _today() -> str:
    """Today's date: a run keeps it, so that a template which writes it writes the same when the run is resumed."""
    return datetime.date.today().isoformat()


MAIN = flag_group("Main options", 0)
DATA = flag_group("Data", 1)
GRID = flag_group("What is tried", 2)
ADAPTER = flag_group("Adapters", 3)
TRAINING = flag_group("Training", 4)
TEXTS = flag_group("Texts", 5)
BASE = flag_group("Base", 6)

Numbers = Annotated[tuple[int, ...], listed(parse_numbers)]
Rates = Annotated[tuple[float, ...], listed(parse_rates)]
Columns = Annotated[tuple[tuple[str, str], ...], listed(parse_columns)]
Names = Annotated[tuple[str, ...], listed(parse_names)]
Folders = Annotated[tuple[str, ...], listed(parse_folders)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Settings of `rankwise sweep`; None means that the value follows from the task, the model or the data.

    Args:
        model: The base: a folder, a .gguf file, or a name on the Hugging Face hub.
        task: "classify" (texts with labels), "sft" (texts to imitate) or "images" (images with labels).
        data: Training examples: a .jsonl, .json, .csv, .tsv or .parquet file, or a hub name. Images: a folder with a
            folder for each label, or a file with the columns path and label.
        validation: Validation examples, which decide. [default: cut off the training examples]
        test: Test examples, read once. [default: cut off the training examples]
        columns: Which columns hold what, where they are not called so: prompt=mr,completion=ref.
        validation_share: How much is cut off for validation.
        test_share: How much is cut off for test.
        split_seed: Seed of the cuts and of the draws below; the same for all seeds of the sweep.
        limit_train: Use so many training examples at the most, drawn at random. [default: all]
        limit_validation: Use so many validation examples at the most.
        limit_test: Use so many test examples at the most.
        skip_bad_lines: Leave out lines that can't be used, and say so.
        ranks: LoRA ranks: 1,2,4 or a range, 1:64:x2.
        init_from: Folders of adapters to train on, each a configuration beside the ranks, with its own rank, alpha and
            targets.
        seeds: How many seeds, or a list of them: 3, or 0,7; of an adaptive plan at the most. [default: 16; of a grid
            3]
        lr: Learning rates of LoRA; the best is chosen for each rank.
        baseline: Train all weights too, as the reference.
        baseline_lr: Learning rates of full fine-tuning. [default: a tenth of --lr]
        head_lr: Learning rates where a classifier's head is trained alone. [default: ten times --lr]
        head_rate: Learning rate of a head that an adapter trains with it, as a multiple of the adapter's; in full
            fine-tuning ten times that multiple, so that the head learns as fast at a tenth of the rate.
        search: Look for learning rates on so many training examples with one seed, and train at the best ones only; 0
            trains the whole grid, as do training data of less than twice as many.
        search_rungs: Epochs of the search after which the worse half of the learning rates leaves.
        widen: Try further learning rates where the best one lies at the edge of those given.
        rungs: Epochs after which configurations that a smaller one clearly beats leave. [default: none]
        deciding: What is asked of the answer, and how runs are planned.
        alpha: Numerator of the scale alpha / r.
        dropout: Probability that an input of an adapter is dropped in training.
        target_modules: Modules to adapt: "all-linear", names, or a pattern.
        exclude_modules: Modules to leave out.
        init: How A and B start: kaiming, gaussian or notebook.
        scaling: "alpha/r" or "alpha/sqrt(r)".
        variant: What is trained in a layer: lora, dora, vera; of several each is tried at every rank.
        epochs: Passes over the training data.
        batch_size: Examples a step, of each run.
        rows_a_pass: Examples of a step that pass through the model at once; less takes less memory. [default: all]
        optimiser: Optimiser of all runs: adamw, sgd, muon.
        schedule: How the learning rate moves: constant, cosine, linear, plateau.
        warmup: Steps over which the learning rate rises.
        weight_decay: AdamW's.
        clip: Largest norm of each run's gradient; 0 for none.
        patience: Stop a run after so many epochs without a better validation loss. [default: never]
        base_dropout: Let the base's own dropout act in training.
        gradient_checkpointing: Compute activations anew in the backward pass: less memory, a third more time.
        max_length: The most tokens of an example. [default: the model's context]
        labels: "one", "several" or "number" a text. [default: seen from the data]
        metric: What decides among classifiers: accuracy, f1 (macro F1) or mcc (Matthews' correlation); of numbers
            error. [default: accuracy, or error]
        pooling: A classifier's input: "model" for the architecture's own classifier, which transformers loads; "mean"
            for the mean of an encoder's outputs; "auto" for the first where there is one.
        loss_on: Learn the "answer" of each example, or "all" of it.
        chat: Write prompts and completions as a conversation by the model's chat template. [default: instructions]
        chat_template: A template for a tokenizer without one: a file, or Jinja text.
        separator: What stands between prompt and completion; \\n is a new line, \\t a tab.
        date: The date that a chat template writes, such as 2026-11-29. [default: today's]
        join: Join short examples to full rows, without attention from one to another.
        dtype: The type that the base is loaded in: float32, bfloat16 or float16 (the last on a GPU). A base in half
            precision computes in it, whatever --precision is.
        precision: How a float32 base computes: float32, or bf16 (products of linear layers in bfloat16, all else in
            float32). auto takes bf16 on CUDA devices that have it, else float32.
        quantize: Keep the linear layers of the base in 8 bits (int8) or 4 (nf4), without full fine-tuning. [default:
            as they are]
        device: Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS (untested), then the CPU.
        attention: transformers' implementation: sdpa, eager, ... [default: its choice]
        trust_remote_code: Run Python code that comes with the model.
    """

    model: Annotated[str, Parameter(group=MAIN)]
    task: Annotated[str, Parameter(group=MAIN)]
    data: Annotated[str, Parameter(group=MAIN)]
    validation: Annotated[str | None, Parameter(group=DATA)] = None
    test: Annotated[str | None, Parameter(group=MAIN)] = None
    columns: Annotated[
        tuple[tuple[str, str], ...], listed(parse_columns), Parameter(group=DATA, show_default=False)
    ] = ()
    validation_share: Annotated[float, Parameter(group=DATA)] = 0.1
    test_share: Annotated[float, Parameter(group=DATA)] = 0.1
    split_seed: Annotated[int, Parameter(group=DATA)] = 0
    limit_train: Annotated[int | None, Parameter(group=DATA)] = None
    limit_validation: Annotated[int | None, Parameter(group=DATA)] = None
    limit_test: Annotated[int | None, Parameter(group=DATA)] = None
    skip_bad_lines: Annotated[bool, Parameter(group=DATA, negative="", show_default=False)] = False

    ranks: Annotated[Numbers, Parameter(group=MAIN)] = (1, 2, 4, 8, 16, 32)
    init_from: Annotated[Folders, Parameter(group=GRID, show_default=False)] = ()
    seeds: Annotated[tuple[int, ...] | None, listed(parse_seeds), Parameter(group=MAIN)] = None
    lr: Annotated[Rates, Parameter(group=MAIN)] = (1e-4, 3e-4, 1e-3)
    baseline: Annotated[bool, Parameter(group=GRID)] = True
    baseline_lr: Annotated[Rates | None, Parameter(group=GRID)] = None
    head_lr: Annotated[Rates | None, Parameter(group=GRID)] = None
    head_rate: Annotated[float, Parameter(group=TRAINING)] = 3.0
    search: Annotated[int, Parameter(group=GRID)] = 2000
    search_rungs: Annotated[Numbers, Parameter(group=GRID)] = (1,)
    widen: Annotated[bool, Parameter(group=GRID)] = True
    rungs: Annotated[Numbers | None, Parameter(group=GRID)] = None
    deciding: Annotated[Deciding, Parameter(name="*", group=DECIDING)] = field(default_factory=Deciding)

    alpha: Annotated[float, Parameter(group=ADAPTER)] = 32.0
    dropout: Annotated[float, Parameter(group=ADAPTER)] = 0.0
    target_modules: Annotated[Names, Parameter(group=MAIN)] = ("all-linear",)
    exclude_modules: Annotated[Names, Parameter(group=ADAPTER, show_default=False)] = ()
    init: Annotated[str, Parameter(group=ADAPTER)] = "kaiming"
    scaling: Annotated[str, Parameter(group=ADAPTER)] = "alpha/r"
    variant: Annotated[Names, Parameter(group=ADAPTER)] = ("lora",)

    epochs: Annotated[int, Parameter(group=MAIN)] = 3
    batch_size: Annotated[int, Parameter(group=TRAINING)] = 32
    rows_a_pass: Annotated[int | None, Parameter(group=TRAINING)] = None
    optimiser: Annotated[str, Parameter(group=TRAINING)] = "adamw"
    schedule: Annotated[str, Parameter(group=TRAINING)] = "cosine"
    warmup: Annotated[int, Parameter(group=TRAINING)] = 0
    weight_decay: Annotated[float, Parameter(group=TRAINING)] = 0.0
    clip: Annotated[float, Parameter(group=TRAINING)] = 1.0
    patience: Annotated[int | None, Parameter(group=TRAINING)] = None
    base_dropout: Annotated[bool, Parameter(group=TRAINING)] = True
    gradient_checkpointing: Annotated[bool, Parameter(group=TRAINING, negative="", show_default=False)] = False

    max_length: Annotated[int | None, Parameter(group=TEXTS)] = None
    labels: Annotated[str | None, Parameter(group=TEXTS)] = None
    metric: Annotated[str | None, Parameter(group=TEXTS)] = None
    pooling: Annotated[str, Parameter(group=TEXTS)] = "auto"
    loss_on: Annotated[str, Parameter(group=TEXTS)] = "answer"
    chat: Annotated[bool | None, Parameter(group=TEXTS)] = None
    chat_template: Annotated[str | None, Parameter(group=TEXTS)] = None
    separator: Annotated[str, listed(parse_separator, spaces=False), Parameter(group=TEXTS, show_default=False)] = ""
    date: Annotated[str, Parameter(group=TEXTS, show_default=False)] = field(default_factory=_today)
    join: Annotated[bool, Parameter(group=TEXTS, negative="", show_default=False)] = False

    dtype: Annotated[str, Parameter(group=BASE)] = "float32"
    precision: Annotated[str, Parameter(group=BASE)] = "auto"
    quantize: Annotated[str | None, Parameter(group=BASE)] = None
    device: Annotated[str, Parameter(group=BASE)] = "auto"
    attention: Annotated[str | None, Parameter(group=BASE)] = None
    trust_remote_code: Annotated[bool, Parameter(group=BASE, negative="", show_default=False)] = False

    def __post_init__(self) -> None:
        check_task(self.task)
        if not self.ranks or min(self.ranks) < 1:
            raise ConfigError(f"--ranks is {list(self.ranks)}; give one or more whole numbers of at least 1.")
        if self.seeds is not None and (not self.seeds or min(self.seeds) < 0):
            raise ConfigError(f"--seeds is {list(self.seeds)}; give at least one, none below 0.")
        for what, value in (
            ("epochs", self.epochs),
            ("batch-size", self.batch_size),
            ("rows-a-pass", self.rows_a_pass),
            ("limit-train", self.limit_train),
            ("limit-validation", self.limit_validation),
            ("limit-test", self.limit_test),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"--{what} is {value}; it must be a whole number of at least 1.")
        if not 0 < self.head_rate < float("inf"):
            raise ConfigError(f"--head-rate is {self.head_rate}; it must be a positive number, such as 3.")
        if self.search < 0:
            raise ConfigError(f"--search is {self.search}; it is a number of examples, 0 to train the whole grid.")
        for what, given in (("rungs", self.rungs), ("search-rungs", self.search_rungs)):
            if given is not None and ([*given] != sorted({*given}) or any(rung < 1 for rung in given)):
                raise ConfigError(f"--{what} is {list(given)}; give rising numbers of epochs, such as 1,2.")
        for what, rates in (("lr", self.lr), ("baseline-lr", self.baseline_lr), ("head-lr", self.head_lr)):
            if rates is not None and not (rates and all(0 < rate < float("inf") for rate in rates)):
                raise ConfigError(f"--{what} is {list(rates)}; give positive numbers, such as 1e-4,1e-3.")
        for what, share in (("validation-share", self.validation_share), ("test-share", self.test_share)):
            if not 0 < share < 1:
                raise ConfigError(f"--{what} is {share}; it is a share of the training data, such as 0.1.")
        if self.metric is not None and self.task == "sft":
            raise ConfigError(
                "--metric chooses what decides among classifiers; texts to imitate are judged by their loss."
            )
        if self.join and self.task != "sft":
            raise ConfigError("--join joins texts to imitate (--task sft); texts with labels stay apart.")
        check_idle(self)

    @property
    def fresh_ranks(self) -> tuple[int, ...]:
        """The ranks at which adapters are trained from the beginning."""
        return self.ranks

    @property
    def compared(self) -> bool:
        """Whether the head alone and full fine-tuning are trained beside the adapters."""
        return True

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds; of an adaptive plan at the most these."""
        return self.deciding.seeds(self.seeds)

    def settings(self) -> dict[str, Any]:
        """The complete settings as a file for --config has them: flag -> plain value."""
        plain = plain_settings(asdict(self))
        if self.task != "sft":
            del plain["date"]  # only conversations are dated
        plain["columns"] = ",".join(f"{role}={column}" for role, column in self.columns)
        return {key: value for key, value in plain.items() if value not in ("", [])}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainOptions(TextOptions):
    """Settings of `rankwise train`: those of a sweep with one run, without what compares several.

    Args:
        ranks: The adapter's rank.
        init_from: Folder of an adapter to train on, with its own rank, alpha and targets.
        seeds: The seed.
        lr: The learning rate.
    """

    ranks: Annotated[Numbers, Parameter(name=["--ranks", "--rank"], group=MAIN)] = (DEFAULT_RANK,)
    # --seed 7 is the seed 7; --seeds means the same in every command.
    seeds: Annotated[
        tuple[int, ...],
        listed(parse_seeds, by_flag={"--seed": parse_numbers}),
        Parameter(name=["--seeds", "--seed"], group=MAIN),
    ] = (0,)
    lr: Annotated[Rates, Parameter(group=MAIN)] = (3e-4,)
    baseline: Annotated[bool, Parameter(parse=False)] = False
    baseline_lr: Annotated[Rates | None, Parameter(parse=False)] = None
    head_lr: Annotated[Rates | None, Parameter(parse=False)] = None
    search: Annotated[int, Parameter(parse=False)] = 0
    search_rungs: Annotated[Numbers, Parameter(parse=False)] = ()
    widen: Annotated[bool, Parameter(parse=False)] = False
    rungs: Annotated[Numbers | None, Parameter(parse=False)] = None
    deciding: Annotated[Deciding, Parameter(parse=False)] = field(default_factory=lambda: Deciding(plan="grid"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, given in (
            ("ranks", self.ranks),
            ("seeds", self.seed_list),
            ("lr", self.lr),
            ("variant", self.variant),
        ):
            if len(given) != 1:
                raise ConfigError(
                    f"rankwise train trains one adapter, and --{what} names {len(given)}; give one, or run rankwise "
                    "sweep."
                )
        if len(self.init_from) > 1:
            raise ConfigError(f"--init-from names {len(self.init_from)} adapters; rankwise train trains one.")
        if self.init_from and self.ranks != (DEFAULT_RANK,):
            raise ConfigError(f"--rank is {self.ranks[0]}, and --init-from brings its own rank; leave out one of them.")

    @property
    def fresh_ranks(self) -> tuple[int, ...]:
        """The rank, where no adapter is trained on."""
        return () if self.init_from else self.ranks

    @property
    def compared(self) -> bool:
        """There is nothing to compare."""
        return False

    def settings(self) -> dict[str, Any]:
        """As of a sweep, without the flags that `rankwise train` does not have."""
        comparing = ["baseline", "baseline-lr", "head-lr", "search", "search-rungs", "widen", "rungs"]
        comparing += [one.name.replace("_", "-") for one in fields(Deciding)]
        return {key: value for key, value in super().settings().items() if key not in comparing}
