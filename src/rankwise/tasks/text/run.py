"""`rankwise sweep` and `rankwise train` from options to an experiment."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import ConfigError
from rankwise.experiment import Experiment
from rankwise.lora.config import LoRAConfig
from rankwise.lora.targets.find import ALL_LINEAR
from rankwise.pack.batches import selected
from rankwise.results import Results
from rankwise.streams import stream
from rankwise.sweeps.candidates.baselines import baselines
from rankwise.sweeps.candidates.grid import Candidate
from rankwise.sweeps.candidates.naming import distinct_names, label_in_words
from rankwise.sweeps.candidates.warm_start import candidate_from
from rankwise.sweeps.problem import DEFAULT_DATA, Problem, Run, Splits, SweepState
from rankwise.sweeps.run.stage import Search
from rankwise.sweeps.storage.owned import TRAINED_ON
from rankwise.tasks.images.ready import ready_images
from rankwise.tasks.settings import shared
from rankwise.tasks.text.card.facts import facts_of
from rankwise.tasks.text.card.model_card import write_card
from rankwise.tasks.text.data.seen import run_of, write_seen
from rankwise.tasks.text.model.dropout import silence_dropout
from rankwise.tasks.text.model.heads import MeanPooledClassifier
from rankwise.tasks.text.options import Trains
from rankwise.tasks.text.train.built_task import BuiltTask
from rankwise.tasks.text.train.classify import ready_classify
from rankwise.tasks.text.train.sft import ready_sft
from rankwise.tasks.text.trained import Trained
from rankwise.train.data.tensors import count_rows
from rankwise.train.events import Observers
from rankwise.train.machine.device import device_note, find_device
from rankwise.train.machine.precision import IN_BFLOAT16, choose_precision, precision_note
from rankwise.train.precheck import check_model
from rankwise.train.settings import Training

TASKS: dict[str, Callable[[Trains], BuiltTask]] = {
    "classify": ready_classify,
    "sft": ready_sft,
    "images": ready_images,
}
"""Name -> what makes the task ready to train."""

SEARCH = "search"
"""The splits on which learning rates are looked for."""


def make_text(options: Trains, observers: Observers) -> Experiment:
    """Read data and model, and say what ranks are tried.

    Args:
        options: The settings.
        observers: Hear notes and an example.

    Raises:
        RankwiseError: Something in the options or the data can't be used.
    """
    fresh_adapters(options, {})  # first, before a model is loaded
    first_training(options)
    device = find_device(options.base.device)
    precision = choose_precision(options.base.precision, options.base.dtype, device)
    chosen = device_note(options.base.device, device)
    options = replace(options, base=replace(options.base, device=str(device)))
    ready = TASKS[options.task](options)
    check_model(ready.loaded.model, mend="give --dtype bfloat16, or leave --dtype out")
    chosen += precision_note(options.base.precision, precision, ready.loaded.model, device)
    notes = [*ready.notes, *_quantised(options, ready)]
    if precision != "float32":
        notes.append(IN_BFLOAT16)
    if not options.training.base_dropout:
        silence_dropout(ready.loaded.model)
    if options.training.gradient_checkpointing:
        _checkpoint(ready.loaded.model)
    for line in [*chosen, *notes, *([ready.example] if ready.example else [])]:
        observers.message(line)
    problem = Problem(
        splits={DEFAULT_DATA: ready.splits, **_search_splits(options, ready.splits)},
        loss=ready.loss,
        metric=ready.metric,
        metric_name=ready.metric_name,
        higher_is_better=ready.higher_is_better,
        feed=replace(ready.feed, rows_a_pass=options.training.rows_a_pass, precision=precision),
        constant=ready.constant,
        model_metric=ready.model_metric,
        loss_name=ready.loss_name,
        loss_constant=ready.loss_constant,
    )
    return Experiment(
        task=options.task,
        model=ready.loaded.model,
        candidates=text_candidates(options, ready),
        seeds=options.seed_list,
        problem=problem,
        base_name=options.model,
        base_has_metric=not ready.loaded.new_head,
        rungs=options.grid.rungs or (),
        search=Search(data=SEARCH, rungs=options.grid.search_rungs) if SEARCH in problem.splits else None,
        widen=options.grid.widen,
        deciding=options.deciding,
        notes=notes,
        beside=partial(_beside, options, ready),
    )


def _beside(
    options: Trains,
    ready: BuiltTask,
    folder: Path,
    run: Run,
    results: Results,
    swept: SweepState,
) -> None:
    """Write labels or the way prompts are written, what else it was trained with, and the model card; and for all runs
    together the checksums of what they were trained on.
    """
    if ready.beside is not None:
        ready.beside(folder)
    pooling = "mean" if isinstance(ready.loaded.model, MeanPooledClassifier) else "model"
    Trained(
        max_length=options.form.max_length,
        loss_on=options.form.loss_on if options.task == "sft" else None,
        pooling=pooling if options.task == "classify" else None,
        quantize=options.base.quantize,
        reads=ready.reads,
    ).save(folder)
    if not (run_of(folder) / TRAINED_ON).exists():
        write_seen(run_of(folder), ready.inputs)
    write_card(facts_of(folder, run, results, swept, options, ready), folder)


def _quantised(options: Trains, ready: BuiltTask) -> list[str]:
    """Quantise the base where that is asked for, and say what it saves."""
    if options.base.quantize is None:
        return []
    from rankwise.quantising import quantize

    rank = max(options.fresh_ranks, default=0) if "loftq" in options.adapters.init else 0
    report = quantize(ready.loaded.model, options.base.quantize, skip=ready.loaded.head, error_rank=rank)
    before, after = (sum(sizes) / 2**20 for sizes in zip(*report.layers.values(), strict=True))
    baseline = "; there is no full fine-tuning of it" if options.grid.baseline else ""
    return [
        f"{len(report.layers)} linear layers of the base are kept in {options.base.quantize}: {after:.1f} MiB in place "
        f"of {before:.1f}{baseline}."
    ]


def _checkpoint(model: Any) -> None:
    """Enable activation checkpointing in a transformers model."""
    inner: Any = model.encoder if isinstance(model, MeanPooledClassifier) else model
    # Its name in transformers 5.
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def first_training(options: Trains) -> Training:
    """The training settings of every run, at the first learning rate.

    Raises:
        ConfigError: A value is out of its range, or a name is not known.
    """
    return Training(**shared(options.training, Training, lr=options.grid.lr[0], clip=options.training.clip or None))


def fresh_adapters(options: Trains, extra: Mapping[str, Any], targets: Any = None) -> list[LoRAConfig]:
    """The settings of the adapters that are trained from the beginning: every combination at every rank.

    Args:
        options: The settings.
        extra: Goes into their files.
        targets: What they adapt where the options name nothing; None for all linear layers.

    Raises:
        ConfigError: A value is out of its range, or a name is not known.
    """
    adapters = options.adapters
    if "loftq" in adapters.init and options.base.quantize is None:
        raise ConfigError(
            "--init is loftq, which starts from what quantising takes from the weights, and the base stays as it is; "
            "give --quantize nf4, or another --init."
        )
    chosen = [(targets or ALL_LINEAR) if names == (ALL_LINEAR,) else list(names) for names in adapters.target_modules]
    axes = {name: list(getattr(adapters, name)) for name in ("variant", "init", "scaling", "alpha")}
    fixed = shared(adapters, LoRAConfig, extra=extra)
    return [
        config
        for names in chosen
        for config in LoRAConfig.grid(**{**fixed, **axes, "target_modules": names, "r": list(options.fresh_ranks)})
    ]


def text_candidates(options: Trains, ready: BuiltTask) -> list[Candidate]:
    """Every rank, adapters that are trained on, the head alone where there is one, and full fine-tuning."""
    loaded = ready.loaded
    training = first_training(options)
    extra = {"task_type": ready.task_type} if ready.task_type else {}
    adapters = fresh_adapters(options, extra, ready.targets)
    ranks = [
        Candidate(
            name=name,
            label=label_in_words(name, lora),
            method="lora",
            training=training,
            lrs=options.grid.lr,
            lora=lora,
            modules_to_save=loaded.head,
            head_lr_multiplier=options.training.head_rate,
            start=loaded.initial_head,
        )
        for name, lora in zip(distinct_names(adapters), adapters, strict=True)
    ]
    started = [
        candidate_from(
            loaded.model,
            ready.checked_start(Path(folder)),
            training,
            options.grid.lr,
            head=loaded.head,
            head_start=loaded.initial_head,
            head_lr_multiplier=options.training.head_rate,
        )
        for folder in options.grid.init_from
    ]
    # A quantised weight can't be trained.
    full = (options.grid.baseline_lr or True) if options.grid.baseline and options.base.quantize is None else False
    others = baselines(
        loaded.model,
        loaded.head,
        training,
        options.grid.lr,
        full,
        options.grid.head_lr,
        loaded.initial_head,
        options.training.head_rate,
    )
    return [*ranks, *started, *(others if options.compares else [])]


def _search_splits(options: Trains, splits: Splits) -> dict[str, Splits]:
    """A part of the training data to look for learning rates on; none where it would be half of it or more."""
    n = count_rows(splits.train, "training")
    rates = {
        len(rates) for rates in (options.grid.lr, options.grid.baseline_lr, options.grid.head_lr) if rates is not None
    }
    if not options.grid.search or n < 2 * options.grid.search or rates == {1}:
        return {}
    rows = (
        torch.randperm(n, generator=stream("search", options.examples.split_seed))[: options.grid.search].sort().values
    )
    train = selected(splits.train, rows)
    return {SEARCH: Splits(train, splits.validation, splits.test)}
