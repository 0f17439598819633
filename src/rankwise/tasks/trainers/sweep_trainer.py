"""`rankwise.sweep_trainer`: a script with a Trainer of transformers or TRL becomes a sweep in a line."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.api import Sweep, sweep
from rankwise.errors import ConfigError, arguments_named
from rankwise.lora.base.modes import in_eval
from rankwise.sweeps.candidates.from_user import Config
from rankwise.tasks.text.model.calls import find_inputs
from rankwise.tasks.text.train.built_task import with_gap
from rankwise.tasks.trainers.arguments import check_trainer, training_of
from rankwise.tasks.trainers.batches import LABELS, Collated
from rankwise.tasks.trainers.losses import Loss, find_loss
from rankwise.tasks.trainers.metrics import RowMetric, find_metric
from rankwise.train.data.feed import Feed
from rankwise.train.settings import Training

TAKEN = ("train", "validation", "loss", "metric_name", "higher_is_better", "training", "call", "rows_a_pass")
"""Arguments of `sweep` that the trainer says."""

FOUND_ON = 8
"""Examples of a batch on which the loss is found."""

LORA_TIMES = (10 / 3, 10.0, 30.0)
"""Learning rates of adapters, as multiples of the trainer's, which is one for all weights; full fine-tuning's are a
tenth of these."""


@dataclass(frozen=True)
class TrainerProblem:
    """A trainer as a sweep takes it.

    Args:
        data: "train", "validation" and "test" (the last two may be missing): rows of each.
        feed: How their examples reach the model.
        loss: Of one adapter.
        loss_name: What it is called.
        metric: What decides; None for the loss.
        metric_name: What it is called.
        higher_is_better: Whether it is.
        training: The settings of a run.
    """

    data: Mapping[str, Mapping[str, Tensor]]
    feed: Feed
    loss: Loss
    loss_name: str
    metric: RowMetric | None
    metric_name: str
    higher_is_better: bool
    training: Training


@arguments_named()
def sweep_trainer(
    trainer: Any,
    ranks: Config | Iterable[Config] | Mapping[str, Config | tuple[Config, Training]],
    *,
    test: Any = None,
    metric: str | None = None,
    head: str | Sequence[str] | None = None,
    lrs: float | Sequence[float] | None = None,
    **settings: Any,
) -> Sweep:
    """Sweep what a `Trainer` of transformers or TRL would train: its model, data, collator, loss, metric and arguments.

    Each run trains as `trainer.train()` would, but for the order of the examples, which is each seed's own. What a
    sweep can't do (packed rows, losses and optimisers of your own, callbacks, several devices) is refused by name. The
    trainer and its model stay as they are.

    Args:
        trainer: A trainer that has not trained. Its model is the base, without adapters. Its eval_dataset decides;
            where it has none, a tenth of the training data does.
        ranks: As `configs` of `rankwise.sweep`.
        test: A data set like the trainer's, read once at the end; None cuts a tenth of the training data off.
        metric: Which value of compute_metrics decides, or "loss". None takes metric_for_best_model, or the only value,
            or the loss.
        head: Modules that each adapter trains in full; None takes a classifier's head.
        lrs: Learning rates of the adapters; None tries 3.3, 10 and 30 times the trainer's, and a tenth of these for
            full fine-tuning.
        settings: More of what `rankwise.sweep` takes: seeds, tolerance, plan, out, ...

    Returns:
        As `rankwise.sweep`.

    Raises:
        RankwiseError: Something in the trainer or the settings can't be used, in a line.

    Examples:
        ```python
        trainer = transformers.Trainer(model, args, train_dataset=train, eval_dataset=validation)
        found = rankwise.sweep_trainer(trainer, [1, 2, 4, 8], tolerance="2%")
        print(found)
        ```
    """
    if clash := [name for name in TAKEN if name in settings]:
        raise ConfigError(f"{clash[0]} is what the trainer says; leave it out, or use rankwise.sweep.")
    problem = trainer_problem(trainer, test, metric)
    rate = trainer.args.learning_rate
    return sweep(
        trainer.model,
        ranks,
        train=problem.data["train"],
        validation=problem.data.get("validation"),
        test=problem.data.get("test"),
        loss=problem.loss,
        metric=problem.metric,
        metric_name=problem.metric_name,
        higher_is_better=problem.higher_is_better,
        training=problem.training,
        lrs=[times * rate for times in LORA_TIMES] if lrs is None else lrs,
        head=_head_of(trainer.model) if head is None else head,
        call=problem.feed,
        rows_a_pass=trainer.args.per_device_train_batch_size,
        base_name=settings.pop("base_name", getattr(trainer.model, "name_or_path", "") or "base"),
        **settings,
    )


def trainer_problem(trainer: Any, test: Any = None, metric: str | None = None) -> TrainerProblem:
    """A trainer's problem, in a sweep's form.

    Args:
        trainer: The trainer.
        test: Test data like the trainer's.
        metric: Which value of its compute_metrics decides, or "loss".

    Raises:
        ConfigError: It has something that a sweep can't do.
        DataError: Its data sets have no length, or its collator makes no rows.
    """
    check_trainer(trainer)
    if trainer.train_dataset is None:
        raise ConfigError("The trainer has no train_dataset; give it one.")
    model: nn.Module = trainer.model
    device = next(model.parameters()).device
    loaders = {"train": trainer.get_train_dataloader()}
    if isinstance(trainer.eval_dataset, dict):
        raise ConfigError(f"The trainer has {len(trainer.eval_dataset)} eval data sets; a sweep decides on one.")
    if trainer.eval_dataset is not None:
        loaders["validation"] = trainer.get_eval_dataloader()
    if test is not None:
        loaders["test"] = trainer.get_test_dataloader(test)
    collated = Collated([(loader.dataset, loader.collate_fn) for loader in loaders.values()])
    data = {what: collated.numbered(part, device) for part, what in enumerate(loaders)}
    collated.check()
    call = find_inputs(model)
    n = len(data["train"]["rows"])
    firsts = [collated.of(range(start, min(n, start + FOUND_ON))) for start in (0, max(0, n - FOUND_ON))]
    batches = [{key: tensor.to(device) for key, tensor in batch.items()} for batch in firsts]
    with torch.no_grad(), in_eval(model):
        outputs = [call(model, batch) for batch in batches]
        loss_name, loss = find_loss(trainer, batches, outputs)
    decides = find_metric(trainer, outputs[0], batches[0][LABELS], metric)
    steps = -(-n // (trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps))
    training, notes = training_of(trainer, steps * int(trainer.args.num_train_epochs))
    notes.insert(0, f"The loss of {type(trainer).__name__} is the {loss_name}, equal to the trainer's on its batches.")
    if trainer.args.bf16:
        notes.append("Products of linear layers ran in bfloat16, all else in float32 (bf16).")
    precision = "bf16" if trainer.args.bf16 else "float32"
    feed = Feed(call=call, prepare=collated, example=with_gap, precision=precision, notes=tuple(notes))
    return TrainerProblem(
        data=data,
        feed=feed,
        loss=loss,
        loss_name=loss_name,
        metric=None if decides is None else decides[0],
        metric_name="loss" if decides is None else decides[0].name,
        higher_is_better=decides is not None and decides[1],
        training=training,
    )


def _head_of(model: Any) -> tuple[str, ...]:
    """A classifier's head: what stands outside the base."""
    if "Classification" not in type(model).__name__:
        return ()
    base = f"{getattr(model, 'base_model_prefix', '')}."
    return tuple(
        name
        for name, module in model.named_modules()
        if name and not f"{name}.".startswith(base) and any(True for _ in module.parameters(recurse=False))
    )
