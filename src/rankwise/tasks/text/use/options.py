"""What a user can set where saved adapters are used. Light: the command line reads it without loading torch."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from rankwise.tasks.flags import flag_group, listed
from rankwise.tasks.text.options import check_task, parse_separator

BASE = flag_group("Base", 6)
TEXTS = flag_group("Texts", 5)

NOT_QUANTIZED = "none"
"""--quantize that leaves the base as it is, whatever the adapter was trained over."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How a base and an adapter are loaded to be merged.

    Args:
        model: The base: a folder, a .gguf file, or a name on the Hugging Face hub. [default: what the adapter names]
        task: "classify" or "sft". [default: classify where labels.json lies next to the adapter, else sft]
        pooling: A classifier's input: "model" for the architecture's own classifier, "mean" for the mean of an
            encoder's outputs. [default: as in training]
        chat_template: A template for a tokenizer without one: a file, or Jinja text. [default: as in training]
        dtype: Numbers of the base: float32, bfloat16 or float16 (the last two on a GPU).
        quantize: Merge into the base's layers as they are in 8 bits (int8) or 4 (nf4). [default: into plain weights]
        device: Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS (untested), then the CPU.
        attention: transformers' implementation: sdpa, eager, ... [default: its choice]
        trust_remote_code: Run Python code that comes with the model.
    """

    model: Annotated[str | None, Parameter(group=BASE)] = None
    task: Annotated[str | None, Parameter(group=TEXTS)] = None
    pooling: Annotated[str | None, Parameter(group=TEXTS)] = None
    chat_template: Annotated[str | None, Parameter(group=TEXTS)] = None
    dtype: Annotated[str, Parameter(group=BASE)] = "float32"
    quantize: Annotated[str | None, Parameter(group=BASE)] = None
    device: Annotated[str, Parameter(group=BASE)] = "auto"
    attention: Annotated[str | None, Parameter(group=BASE)] = None
    trust_remote_code: Annotated[bool, Parameter(group=BASE, negative="", show_default=False)] = False

    def use(self) -> "UseOptions":
        """The same as for using the adapter."""
        return UseOptions(**asdict(self))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class UseOptions:
    """How a base and its adapters are loaded and asked.

    Args:
        model: The base: a folder, a .gguf file, or a name on the Hugging Face hub. [default: what the adapter names]
        task: "classify" or "sft". [default: classify where labels.json lies next to the adapter, else sft]
        max_length: The most tokens of an example. [default: as in training; of generate, the model's context]
        pooling: A classifier's input: "model" for the architecture's own classifier, "mean" for the mean of an
            encoder's outputs. [default: as in training]
        loss_on: Take the loss on the "answer" of each example, or on "all" of it. [default: as in training]
        chat: Write prompts as a conversation by the model's chat template. [default: as in training]
        chat_template: A template for a tokenizer without one: a file, or Jinja text. [default: as in training]
        separator: What stands between prompt and answer; \\n is a new line, \\t a tab. [default: as in training]
        date: The date that a chat template writes, such as 2026-11-29. [default: as in training, else today's]
        dtype: Numbers of the base: float32, bfloat16 or float16.
        quantize: Keep the linear layers of the base in 8 bits (int8) or 4 (nf4), or as they are (none). [default: as in
            training; of merge, as they are]
        device: Where to compute: cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS (untested), then the CPU.
        attention: transformers' implementation: sdpa, eager, ... [default: its choice]
        trust_remote_code: Run Python code that comes with the model.
    """

    model: Annotated[str | None, Parameter(group=BASE)] = None
    task: Annotated[str | None, Parameter(group=TEXTS)] = None
    max_length: Annotated[int | None, Parameter(group=TEXTS)] = None
    pooling: Annotated[str | None, Parameter(group=TEXTS)] = None
    loss_on: Annotated[str | None, Parameter(group=TEXTS)] = None
    chat: Annotated[bool | None, Parameter(group=TEXTS)] = None
    chat_template: Annotated[str | None, Parameter(group=TEXTS)] = None
    separator: Annotated[str | None, listed(parse_separator, spaces=False), Parameter(group=TEXTS)] = None
    date: Annotated[str | None, Parameter(group=TEXTS)] = None
    dtype: Annotated[str, Parameter(group=BASE)] = "float32"
    quantize: Annotated[str | None, Parameter(group=BASE)] = None
    device: Annotated[str, Parameter(group=BASE)] = "auto"
    attention: Annotated[str | None, Parameter(group=BASE)] = None
    trust_remote_code: Annotated[bool, Parameter(group=BASE, negative="", show_default=False)] = False

    def __post_init__(self) -> None:
        if self.task is not None:
            check_task(self.task)
