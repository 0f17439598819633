"""The groups of settings of text tasks, each one class; a command's options are composed of them."""

import datetime
from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter

from rankwise.requirements import PART, Requirement, require
from rankwise.tasks.flags import ADAPTER, BASE_FLAGS, DATA_FLAGS, GRID, MAIN, TEXTS, TRAINING, listed
from rankwise.tasks.reading import parse_numbers, parse_seeds
from rankwise.tasks.settings import (
    Alphas,
    Columns,
    Device,
    Folders,
    Inits,
    LrRatio,
    Names,
    OptimiserName,
    Positive,
    Ranks,
    Rates,
    Rungs,
    Seeds,
    Separator,
    Switch,
    TargetSets,
    Variants,
    WholeNumber,
    flag,
)

DEFAULT_RANK = 8
"""Of a single adapter."""

TEMPERATURE = Requirement(lambda t: 0 <= t < float("inf"), "it is 0 or a positive number, such as 0.7")
EXAMPLES = Requirement(lambda n: n >= 0, "it is a number of examples, 0 to train the whole grid")
Share = Annotated[float, PART]


class OptionGroup:
    """Settings that are compared with their requirements as they are made."""

    def __post_init__(self) -> None:
        require(self, flag)


@Parameter(name="*", group=DATA_FLAGS)
@dataclass(frozen=True, kw_only=True)
class DataOptions(OptionGroup):
    """The source of examples, and which are used.

    Args:
        validation: Validation examples, which decide. [default: cut off the training examples]
        test: Test examples, read once. [default: cut off the training examples]
        columns: Which columns hold what, where they are not called so: prompt=mr,completion=ref.
        validation_share: How much is cut off for validation.
        test_share: How much is cut off for test.
        split_seed: Seed of the cuts and of the draws below; the same for all seeds of the sweep.
        limit_train: Use so many training examples at most, drawn at random. [default: all]
        limit_validation: Use so many validation examples at most.
        limit_test: Use so many test examples at most.
        skip_bad_lines: Leave out lines that can't be used, and say so.
    """

    validation: str | None = None
    test: Annotated[str | None, Parameter(group=MAIN)] = None
    columns: Columns = ()
    validation_share: Share = 0.1
    test_share: Share = 0.1
    split_seed: int = 0
    limit_train: WholeNumber | None = None
    limit_validation: WholeNumber | None = None
    limit_test: WholeNumber | None = None
    skip_bad_lines: Switch = False

    def limits(self) -> dict[str, int | None]:
        """Split -> how many of its examples are used at most."""
        return {"train": self.limit_train, "validation": self.limit_validation, "test": self.limit_test}


@Parameter(name="*", group=GRID)
@dataclass(frozen=True, kw_only=True)
class GridOptions(OptionGroup):
    """The grid of a sweep.

    Args:
        init_from: Folders of adapters to train on, each a configuration beside the ranks, with its own rank, alpha and
            targets.
        lr: Learning rates of LoRA; the best is chosen for each rank.
        baseline: Train all weights too, as the reference.
        baseline_lr: Learning rates of full fine-tuning. [default: a tenth of --lr]
        head_lr: Learning rates where a classifier's head is trained alone. [default: ten times --lr]
        search: Look for learning rates on so many training examples with one seed, and train at the best ones only; 0
            trains the whole grid, as do training data of less than twice as many.
        search_rungs: Epochs of the search after which the worse half of the learning rates leaves, as do those beyond
            the grid that are behind the best.
        widen: Try further learning rates where the best one lies at the edge of those given.
        rungs: Epochs after which configurations that a smaller one clearly beats leave. [default: none]
    """

    ranks: Ranks = (1, 2, 4, 8, 16, 32)
    init_from: Annotated[Folders, Parameter(show_default=False)] = ()
    seeds: Seeds | None = None
    lr: Annotated[Rates, Parameter(group=MAIN)] = (1e-4, 3e-4, 1e-3)
    baseline: bool = True
    baseline_lr: Rates | None = None
    head_lr: Rates | None = None
    search: Annotated[int, EXAMPLES] = 2000
    search_rungs: Rungs = (1,)
    widen: bool = True
    rungs: Rungs | None = None


@Parameter(name="*", group=GRID)
@dataclass(frozen=True, kw_only=True)
class OneRun(OptionGroup):
    """Settings of a single adapter.

    Args:
        ranks: The adapter's rank.
        init_from: Folder of an adapter to train on, with its own rank, alpha and targets.
        seeds: The seed.
        lr: The learning rate.
    """

    ranks: Annotated[Ranks, Parameter(name=["--ranks", "--rank"], help="The adapter's rank.")] = (DEFAULT_RANK,)
    init_from: Annotated[Folders, Parameter(show_default=False)] = ()
    # --seed 7 is the seed 7; --seeds means the same in every command.
    seeds: Annotated[
        Seeds,
        listed(parse_seeds, by_flag={"--seed": parse_numbers}),
        Parameter(name=["--seeds", "--seed"], help="The seed."),
    ] = (0,)
    lr: Annotated[Rates, Parameter(group=MAIN)] = (3e-4,)

    def as_grid(self) -> GridOptions:
        """The grid of this one run."""
        return GridOptions(
            ranks=self.ranks,
            init_from=self.init_from,
            seeds=self.seeds,
            lr=self.lr,
            baseline=False,
            search=0,
            widen=False,
        )


@Parameter(name="*", group=ADAPTER)
@dataclass(frozen=True, kw_only=True)
class AdapterOptions(OptionGroup):
    """Settings of an adapter.

    Args:
        alpha: Numerator of the scale alpha / r; of several each is tried: 16,32.
        dropout: Probability that an input of an adapter is dropped in training.
        target_modules: Modules to adapt: "all-linear", names, or a pattern; where the flag is given again, each set is
            tried.
        exclude_modules: Modules to leave out.
        scaling: "alpha/r" or "alpha/sqrt(r)" (rank-stabilised, rsLoRA), or both.
    """

    alpha: Alphas = (32.0,)
    dropout: float = 0.0
    target_modules: Annotated[TargetSets, Parameter(group=MAIN)] = (("all-linear",),)
    exclude_modules: Annotated[Names, Parameter(show_default=False)] = ()
    init: Inits = ("kaiming",)
    scaling: Names = ("alpha/r",)
    variant: Variants = ("lora",)


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptionGroup):
    """Training settings of every run.

    Args:
        epochs: Passes over the training data.
        batch_size: Examples a step, of each run.
        rows_a_pass: Examples of a step that pass through the model at once; less takes less memory. [default: all]
        head_rate: Learning rate of a head that an adapter trains with it, as a multiple of the adapter's; in full
            fine-tuning ten times that multiple, so that the head learns as fast at a tenth of the rate.
        schedule: How the learning rate moves: constant, cosine, linear, plateau.
        warmup: Steps over which the learning rate rises.
        weight_decay: AdamW's.
        clip: Largest norm of each run's gradient; 0 for none.
        patience: Stop a run after this many epochs without a better validation loss. [default: never]
        base_dropout: Let the base's own dropout act in training.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
    """

    epochs: Annotated[WholeNumber, Parameter(group=MAIN)] = 3
    batch_size: WholeNumber = 32
    rows_a_pass: WholeNumber | None = None
    head_rate: Positive = 3.0
    optimiser: OptimiserName = "adamw"
    schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    patience: int | None = None
    lr_ratio: LrRatio = 1.0
    base_dropout: bool = True
    gradient_checkpointing: Switch = False


def _today() -> str:
    """Today's date: a run keeps it, so that a template which writes it writes the same when the run is resumed."""
    return datetime.date.today().isoformat()


@Parameter(name="*", group=TEXTS)
@dataclass(frozen=True, kw_only=True)
class FormOptions(OptionGroup):
    """Settings of texts, labels and answers.

    Args:
        max_length: The most tokens of an example. [default: the model's context]
        labels: "one", "several" or "number" a text. [default: seen from the data]
        metric: What decides. Of classifiers: accuracy, f1 (macro F1), mcc (Matthews' correlation) or loss; of numbers
            error or loss. Of texts to imitate: loss, or bleu, rouge_l or exact_match of the answers that each trained
            model writes. [default: accuracy, error, or the loss a token]
        max_new_tokens: The most tokens of an answer that is written for such a metric. [default: as the longest of the
            data]
        pooling: A classifier's input: "model" for the architecture's own classifier, which transformers loads; "mean"
            for the mean of an encoder's outputs; "auto" for the first where there is one.
        loss_on: Learn the "answer" of each example, or "all" of it.
        chat: Write prompts and completions as a conversation by the model's chat template. [default: instructions]
        chat_template: A template for a tokenizer without one: a file, or Jinja text.
        separator: What stands between prompt and completion; \\n is a new line, \\t a tab.
        date: The date that a chat template writes, such as 2026-11-29. [default: today's]
        join: Join short examples to full rows, without attention from one to another.
    """

    max_length: int | None = None
    labels: str | None = None
    metric: str | None = None
    max_new_tokens: WholeNumber | None = None
    pooling: str = "auto"
    loss_on: str = "answer"
    chat: bool | None = None
    chat_template: str | None = None
    separator: Separator = ""
    date: Annotated[str, Parameter(show_default=False)] = field(default_factory=_today)
    join: Switch = False


@Parameter(name="*", group=BASE_FLAGS)
@dataclass(frozen=True, kw_only=True)
class BaseOptions(OptionGroup):
    """Settings that load the base, and its device.

    Args:
        dtype: The type that the base is loaded in: float32, bfloat16 or float16 (the last on a GPU). A base in half
            precision computes in it, whatever --precision is.
        precision: How a float32 base computes: float32, or bf16 (products of linear layers in bfloat16, all else in
            float32). auto takes bf16 on CUDA devices that have it, else float32.
        quantize: Keep the linear layers of the base in 8 bits (int8) or 4 (nf4), without full fine-tuning. [default:
            as they are]
        attention: transformers' implementation: sdpa, eager, ... [default: its choice]
        trust_remote_code: Run Python code that comes with the model.
    """

    dtype: str = "float32"
    precision: str = "auto"
    quantize: str | None = None
    device: Device = "auto"
    attention: str | None = None
    trust_remote_code: Switch = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Writing(OptionGroup):
    """How texts are written.

    Args:
        max_new_tokens: The most tokens of an answer.
        temperature: 0 takes the likeliest token always; above, tokens are drawn.
        seed: Of the draws.
        batch_size: Prompts at once.
    """

    max_new_tokens: WholeNumber = 64
    temperature: Annotated[float, TEMPERATURE] = 0.0
    seed: int = 0
    batch_size: WholeNumber = 8
