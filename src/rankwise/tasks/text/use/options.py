"""Options for using saved adapters. The command line reads this file without loading torch."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from rankwise.requirements import Requirement, require
from rankwise.tasks.flags import BASE_FLAGS, TEXTS, listed
from rankwise.tasks.reading import parse_columns
from rankwise.tasks.settings import Columns, Device, Separator, Switch, WholeNumber, flag
from rankwise.tasks.text.options import check_task

TEMPERATURE = Requirement(lambda t: 0 <= t < float("inf"), "it is 0 or a positive number, such as 0.7")

NOT_QUANTIZED = "none"
"""--quantize that leaves the base as it is, whatever the adapter was trained over."""


@Parameter(name="*", group=BASE_FLAGS)
@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Settings that load a base and an adapter.

    Args:
        model: The base: a folder, a .gguf file, or a name on the Hugging Face hub. [default: what the adapter names]
        task: "classify" or "sft". [default: classify where labels.json lies next to the adapter, else sft]
        pooling: A classifier's input: "model" for the architecture's own classifier, "mean" for the mean of an
            encoder's outputs. [default: as in training]
        chat_template: A template for a tokenizer without one: a file, or Jinja text. [default: as in training]
        dtype: Numbers of the base: float32, bfloat16 or float16 (of merge, the last two on a GPU).
        quantize: Keep the linear layers of the base in 8 bits (int8) or 4 (nf4), or as they are (none). [default: as in
            training; of merge, as they are]
        attention: transformers' implementation: sdpa, eager, ... [default: its choice]
        trust_remote_code: Run Python code that comes with the model.
    """

    model: str | None = None
    task: Annotated[str | None, Parameter(group=TEXTS)] = None
    pooling: Annotated[str | None, Parameter(group=TEXTS)] = None
    chat_template: Annotated[str | None, Parameter(group=TEXTS)] = None
    dtype: str = "float32"
    quantize: str | None = None
    device: Device = "auto"
    attention: str | None = None
    trust_remote_code: Switch = False

    def __post_init__(self) -> None:
        if self.task is not None:
            check_task(self.task)

    def use(self) -> "UseOptions":
        """The same as for using the adapter."""
        return UseOptions(**asdict(self))


@Parameter(name="*", group=BASE_FLAGS)
@dataclass(frozen=True, kw_only=True)
class UseOptions(MergeOptions):
    """Settings that load a base and its adapters, and format prompts.

    Args:
        max_length: The most tokens of an example. [default: as in training; of generate, the model's context]
        loss_on: Take the loss on the "answer" of each example, or on "all" of it. [default: as in training]
        chat: Write prompts as a conversation by the model's chat template. [default: as in training]
        separator: What stands between prompt and answer; \\n is a new line, \\t a tab. [default: as in training]
        date: The date that a chat template writes, such as 2026-11-29. [default: as in training, else today's]
    """

    max_length: Annotated[int | None, Parameter(group=TEXTS)] = None
    loss_on: Annotated[str | None, Parameter(group=TEXTS)] = None
    chat: Annotated[bool | None, Parameter(group=TEXTS)] = None
    separator: Annotated[Separator | None, Parameter(group=TEXTS)] = None
    date: Annotated[str | None, Parameter(group=TEXTS)] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings of generation.

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

    def __post_init__(self) -> None:
        require(self, flag)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluatedData:
    """The examples that adapters are compared with.

    Args:
        data: Examples: a .jsonl, .json, .csv, .tsv or .parquet file, or a hub name; images as in training.
        columns: Which columns hold what, where they are not called so: prompt=mr,completion=ref.
        split: Of a hub data set.
        skip_bad_lines: Leave out lines that can't be used, and say so.
        limit: Use so many examples at most, drawn as --limit-test of a sweep draws them. [default: all]
    """

    data: str
    columns: Annotated[Columns, listed(parse_columns, spaces=False)] = ()
    split: str = "test"
    skip_bad_lines: Switch = False
    limit: int | None = None
