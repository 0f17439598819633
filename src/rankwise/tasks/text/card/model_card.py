"""The model card of an adapter (its README.md), from facts to markdown."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.tasks.text.card.metadata import Metadata, metadata_yaml
from rankwise.tasks.text.card.serving import (
    LLAMA_CPP_RULES,
    LLAMA_CPP_SOURCE,
    VLLM_RULES,
    VLLM_SOURCE,
    PeftConfig,
    max_rank_of,
    objections,
    vllm_max_lora_rank,
)
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.prompting import FILE as PROMPTING
from rankwise.writing import replacing

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class SplitFacts:
    """One split of the data: its name, how many examples it has, and where they are from."""

    name: str
    examples: int
    source: str


@dataclass(frozen=True)
class Figure:
    """One figure of the base and of the adapter; None where it was not taken."""

    name: str
    base: float | None
    adapter: float | None


@dataclass(frozen=True)
class CurvePoint:
    """The losses after some steps."""

    step: int
    train_loss: float
    validation_loss: float


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts of a model card.

    Args:
        name: The adapter's.
        base: The base's hub name, folder or .gguf file, as a user would give it.
        hub_base: The base's name on the hub; None where it is not from there.
        task: For example "classify".
        dataset: The file, folder or hub name of the data that the figures were taken on.
        config: The content of `adapter_config.json`.
        trainable_parameters: How many numbers the adapter has.
        data: The splits.
        figures: Of base and adapter.
        figures_on: On what the figures were taken: "test" or "validation".
        curve: The losses during training; at most a dozen points are shown.
        training: Other settings to show: name -> value in words.
        purpose: In a few words, what the adapter is for.
        advice: What the sweep says about this adapter, and what to deploy.
        notes: Notes about the data.
        pooled: Whether it is a classifier over the mean of an encoder's outputs.
        images: Whether it classifies images.
        head_alone: Whether nothing but a classifier's head was trained; A and B then add nothing.
        labels: A classifier's.
        pad_token: A token for padding, where the tokenizer has none itself.
        chat_template: Whether prompts are written by a chat template.
        own_template: The template, where it is not the tokenizer's own; stored next to the adapter too.
        separator: What stands between prompt and answer where no template writes them.
        version: Rankwise's.
    """

    name: str
    base: str
    hub_base: str | None = None
    task: str = ""
    dataset: str | None = None
    config: PeftConfig
    trainable_parameters: int
    data: tuple[SplitFacts, ...]
    figures: tuple[Figure, ...]
    figures_on: str = "test"
    curve: tuple[CurvePoint, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict[str, str])
    purpose: str = ""
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pooled: bool = False
    images: bool = False
    head_alone: bool = False
    labels: Labels | None = None
    pad_token: str | None = None
    chat_template: bool = False
    own_template: str | None = None
    separator: str = ""
    version: str = ""


AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}
"""transformers' class by PEFT's task type."""

MOST_POINTS = 12


def model_card(facts: CardFacts) -> str:
    """The card as markdown; the same facts give the same text.

    Examples:
        >>> facts = CardFacts(
        ...     name="r8",
        ...     base="owner/model",
        ...     config={"r": 8, "lora_alpha": 32, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
        ...     trainable_parameters=1024,
        ...     data=(SplitFacts("train", 100, "a.jsonl"),),
        ...     figures=(Figure("loss", 2.0, 1.5),),
        ... )
        >>> "| vLLM | yes |" in model_card(facts)
        True
    """
    # Fields that a configuration leaves out have PEFT's defaults, which are all "no".
    config: dict[str, Any] = {"use_rslora": False, "modules_to_save": None, **facts.config}
    targets = config.get("target_modules") or ()
    ranks = sorted({config["r"], *(config.get("rank_pattern") or {}).values()})
    return render(
        "card.md.jinja",
        head=metadata_yaml(_metadata(facts)),
        facts=_thinned(facts),
        config=config,
        rank=str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {max_rank_of(config)}",
        targets=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        pooled=facts.pooled,
        auto_class=AUTO_CLASSES.get(config.get("task_type") or "", "AutoModel"),
        base_arguments=_base_arguments(facts.base),
        vllm=objections(config, VLLM_RULES),
        llama_cpp=objections(config, LLAMA_CPP_RULES),
        max_lora_rank=vllm_max_lora_rank(config),
        fence=_fence(facts.own_template or ""),
        separator=_code(json.dumps(facts.separator, ensure_ascii=False)),
        prompting=PROMPTING,
        vllm_source=VLLM_SOURCE,
        llama_cpp_source=LLAMA_CPP_SOURCE,
    )


def _metadata(facts: CardFacts) -> Metadata:
    return Metadata(
        name=facts.name,
        base=facts.hub_base,
        task=facts.task,
        dataset=facts.dataset,
        split=facts.figures_on,
        metrics={figure.name: figure.adapter for figure in facts.figures},
    )


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates of this folder."""
    return _without_gaps(_environment().get_template(template).render(**values))


@cache
def _environment() -> "Environment":
    """It holds the templates that it has compiled: that takes longer than to fill one in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rankwise.tasks.text.card", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": _cell,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "number": _number,
        "verdict": lambda reasons: "no" if reasons else "yes",
    }
    return environment


def write_card(facts: CardFacts, folder: Path) -> Path:
    """Write `README.md` into an adapter's folder.

    Raises:
        OutputError: The folder can't be written.
    """
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(model_card(facts), encoding="utf-8")
    return folder / "README.md"


def _thinned(facts: CardFacts) -> CardFacts:
    n = len(facts.curve)
    if n <= MOST_POINTS:
        return facts
    chosen = sorted({round(i * (n - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    return replace(facts, curve=tuple(facts.curve[i] for i in chosen))


def _without_gaps(text: str) -> str:
    """One blank line for several, which parts that are left out leave; code stays as it is."""
    kept: list[str] = []
    fence = ""
    for line in text.rstrip("\n").split("\n"):
        if line or fence or not kept or kept[-1]:
            kept.append(line)
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
    return "\n".join(kept) + "\n"


def _fence(text: str) -> str:
    """More backticks than the text has in a row, three at least."""
    return "`" * max(3, _longest_run(text) + 1)


def _code(text: str) -> str:
    """Text as code within a line."""
    ticks = "`" * (_longest_run(text) + 1)
    return f"{ticks}{text}{ticks}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def _base_arguments(base: str) -> str:
    """Arguments that load the base in transformers: a GGUF file by its folder and name."""
    if not base.endswith(".gguf"):
        return json.dumps(base)
    path = Path(base)
    return f"{json.dumps(str(path.parent))}, gguf_file={json.dumps(path.name)}"


def _cell(value: object) -> str:
    """Text for a cell of a markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-" if value is None else "not finite"
    return f"{value:.4g}"
