"""The head of a model card: what the Hugging Face hub reads of it, with the measured metrics as model-index.

References:
    https://huggingface.co/docs/hub/model-cards#model-card-metadata
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwise.tasks.text.extra import requires_extra

PIPELINES = {"classify": "text-classification", "sft": "text-generation", "images": "image-classification"}
"""The hub's word for a task."""

METRIC_TYPES = {"macro F1": "f1", "Matthews correlation": "matthews_correlation", "mean absolute error": "mae"}
"""The hub's word for a metric, where it has another one."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of a card.

    Args:
        name: The adapter's.
        base: The base's name on the hub; None where it is a folder or file of this machine.
        task: Of the run, such as "classify"; empty where it is not known.
        dataset: The data's file, folder or hub name; None where it is not known.
        split: On what the metrics were taken.
        metrics: Name -> value of the adapter; None where it was not taken.
    """

    name: str
    base: str | None
    task: str = ""
    dataset: str | None = None
    split: str = "test"
    metrics: Mapping[str, float | None]


def metadata_yaml(facts: Metadata) -> str:
    """The head as YAML, without the lines around it.

    Raises:
        ConfigError: huggingface_hub is not installed.

    Examples:
        >>> facts = Metadata(name="r8", base=None, task="classify", dataset="d.csv", metrics={"accuracy": 0.9})
        >>> print(metadata_yaml(facts))
        library_name: peft
        pipeline_tag: text-classification
        tags:
        - lora
        - rankwise
        model-index:
        - name: r8
          results:
          - task:
              type: text-classification
            dataset:
              name: d.csv
              type: csv
              split: test
            metrics:
            - type: accuracy
              value: 0.9
              name: test accuracy
    """
    with requires_extra("model cards"):
        from huggingface_hub import EvalResult, ModelCardData

    name, kind = _dataset(facts.dataset, facts.task)
    results = [
        EvalResult(
            task_type=PIPELINES.get(facts.task, facts.task or "other"),
            dataset_name=name,
            dataset_type=kind,
            dataset_split=facts.split,
            metric_type=METRIC_TYPES.get(metric, metric.replace(" ", "_")),
            metric_name=f"{facts.split} {metric}",
            metric_value=value,
        )
        for metric, value in facts.metrics.items()
        if value is not None and math.isfinite(value)
    ]
    head = ModelCardData(
        library_name="peft",
        base_model=facts.base,
        pipeline_tag=PIPELINES.get(facts.task),
        tags=["lora", "rankwise"],
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return head.to_yaml()


def hub_name(base: str) -> str | None:
    """A base's name where it is one of the hub, which refuses cards that name anything else.

    Examples:
        >>> hub_name("HuggingFaceTB/SmolLM2-135M"), hub_name("gpt2"), hub_name("/models/mine"), hub_name("a/b/c.gguf")
        ('HuggingFaceTB/SmolLM2-135M', 'gpt2', None, None)
    """
    part = r"\w(?:[\w.-]{0,94}\w)?"
    named = re.fullmatch(rf"(?:{part}/)?{part}", base, re.ASCII) and not base.endswith(".gguf")
    return base if named and not Path(base).exists() else None


def _dataset(place: str | None, task: str) -> tuple[str, str]:
    """A data set's name and type: a hub name is both; of a file or folder the type is what `datasets` reads it by."""
    if place is None:
        return task or "own data", task or "custom"
    path = Path(place)
    if hub_name(place) and not path.suffix:
        return place, place
    return path.name, path.suffix.removeprefix(".") or "imagefolder"
