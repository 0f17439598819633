"""The facts of a trained adapter's model card, from the results of its sweep."""

import json
from importlib import metadata
from pathlib import Path

from rankwise.report.adapter.deploy import adapter_role, deployment
from rankwise.report.words import headline
from rankwise.results import Results, RunResult
from rankwise.sweeps.problem import Run, SweepState
from rankwise.tasks.text.card.metadata import hub_name
from rankwise.tasks.text.card.model_card import CardFacts, CurvePoint, Figure, SplitFacts
from rankwise.tasks.text.model.heads import MeanPooledClassifier
from rankwise.tasks.text.options import TextOptions
from rankwise.tasks.text.prompting import read_prompting
from rankwise.tasks.text.score.metrics import perplexity_of
from rankwise.tasks.text.train.built_task import BuiltTask

PURPOSES = {"classify": "classifying texts", "sft": "writing texts", "images": "classifying images"}


def facts_of(
    folder: Path, run: Run, results: Results, swept: SweepState, options: TextOptions, ready: BuiltTask
) -> CardFacts:
    """The facts of one adapter.

    Args:
        folder: Of the adapter, as it has been saved.
        run: What trained it.
        results: The content of `results.json`.
        swept: What the runs gave.
        options: The settings of the sweep.
        ready: The task.
    """
    trained, cut = results.adapter_run(run.name)
    sources = {"train": options.data, "validation": options.examples.validation, "test": options.examples.test}
    prompting = read_prompting(folder)
    pooled = isinstance(ready.loaded.model, MeanPooledClassifier)
    training = {
        "learning rate": f"{run.training.lr:g}, {run.training.schedule}",
        "epochs": f"{trained.epochs}, batches of {run.training.batch_size}",
        "seed": str(run.member.seed),
    }
    return CardFacts(
        name=run.name,
        base=options.model,
        hub_base=hub_name(options.model),
        task=options.task,
        head_alone=run.method == "head",
        dataset=options.examples.test or options.data,
        config=json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")),
        trainable_parameters=trained.trainable_parameters,
        data=tuple(
            SplitFacts(name, ready.examples.get(name, split.n), sources[name] or f"cut off {options.data}")
            for name, split in results.data.splits.items()
        ),
        figures=_figures(Figure(results.metric.name, results.base.metric, trained.metric), options.task),
        curve=tuple(
            CurvePoint(point.step, point.train_loss, point.validation_loss)
            for point in swept.curve
            if point.run == trained.name
        ),
        training=training if options.base.quantize is None else {**training, "base kept in": options.base.quantize},
        purpose=PURPOSES[options.task],
        advice=(f"The sweep recommends to ship this adapter: {cut} after training.",)
        if cut
        else _advice(results, trained),
        notes=tuple(ready.notes),
        pooled=pooled,
        images=ready.reads == "images",
        labels=ready.loaded.labels,
        pad_token=ready.pad_token,
        chat_template=prompting is not None and prompting.chat,
        own_template=prompting.chat_template if prompting else None,
        separator=prompting.separator if prompting else "",
        version=metadata.version("rankwise"),
    )


def _advice(results: Results, trained: RunResult) -> tuple[str, ...]:
    """What the sweep says about the adapter; then, where it compared anything, its verdict and what to deploy."""
    role = adapter_role(results, trained)
    if len(results.configurations) < 2 or results.answer is None:
        return (role,)
    return (role, " ".join(filter(None, [headline(results), deployment(results)])))


def _figures(metric: Figure, task: str) -> tuple[Figure, ...]:
    """The metric of the runs, and the perplexity for a loss per token."""
    if task != "sft":
        return (metric,)
    base, adapter = (None if loss is None else perplexity_of(loss) for loss in (metric.base, metric.adapter))
    return metric, Figure("perplexity", base, adapter)
