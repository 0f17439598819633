"""A trainer's arguments: those that a sweep uses, and those that it refuses by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankwise.errors import ConfigError
from rankwise.pack.optimisers import AdamW
from rankwise.train.settings import Training

TRAINER_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
"""transformers' schedule -> Rankwise's."""

HOMES = ("transformers", "trl")
"""Packages whose trainers and callbacks are known."""


@dataclass(frozen=True)
class ArgumentRule:
    """A requirement on an argument.

    Args:
        argument: Its name.
        fits: Whether a sweep can do what a value asks for.
        instead: What it does, and what to set.
    """

    argument: str
    fits: Callable[[Any], bool]
    instead: str


def _plain(value: Any) -> str:
    """A value of an argument that may be a member of an enumeration."""
    return str(getattr(value, "value", value))


def _unset(value: Any) -> bool:
    return not value


RULES = (
    ArgumentRule("max_steps", lambda n: n <= 0, "a sweep trains in full epochs; set num_train_epochs"),
    ArgumentRule(
        "num_train_epochs", lambda n: n >= 1 and n == int(n), "a sweep trains in full epochs; give a whole number"
    ),
    ArgumentRule(
        "lr_scheduler_type",
        lambda name: _plain(name) in TRAINER_SCHEDULES,
        f"take one of {', '.join(TRAINER_SCHEDULES)}",
    ),
    ArgumentRule("lr_scheduler_kwargs", _unset, "leave it out"),
    ArgumentRule("optim", lambda name: _plain(name).startswith("adamw_torch"), "a sweep has AdamW"),
    ArgumentRule("optim_args", _unset, "leave it out"),
    ArgumentRule("optim_target_modules", _unset, "leave it out"),
    ArgumentRule("fp16", _unset, "give bf16=True, or compute in float32"),
    ArgumentRule("torch_compile", _unset, "leave it out; a sweep traces the model"),
    ArgumentRule("use_liger_kernel", _unset, "leave it out; a sweep takes the loss from the logits"),
    ArgumentRule("neftune_noise_alpha", _unset, "a sweep adds no noise to embeddings; leave it out"),
    ArgumentRule("deepspeed", _unset, "a sweep runs on one device; leave it out"),
    ArgumentRule("fsdp", _unset, "a sweep runs on one device; leave it out"),
    ArgumentRule("parallelism_config", _unset, "a sweep runs on one device; leave it out"),
    ArgumentRule("dataloader_drop_last", _unset, "a sweep trains on every example; leave it out"),
    ArgumentRule(
        "train_sampling_strategy", lambda name: name == "random", 'each seed shuffles the examples; set "random"'
    ),
    ArgumentRule("batch_eval_metrics", _unset, "metrics are taken of single examples; leave it out"),
    ArgumentRule("include_for_metrics", _unset, "metrics get predictions and labels; leave it out"),
    ArgumentRule("label_names", lambda names: not names or list(names) == ["labels"], 'labels must be called "labels"'),
    # TRL's.
    ArgumentRule("packing", _unset, "examples of one row can't be distinguished; set packing=False"),
    ArgumentRule("padding_free", _unset, "examples of one row can't be distinguished; set padding_free=False"),
)

OWN_METHODS = ("training_step", "create_optimizer", "create_scheduler", "get_decay_parameter_names", "evaluation_loop")
"""Methods of a trainer that a sweep does not call."""


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer with something that a sweep can't do, by name.

    Raises:
        ConfigError: It has.
    """
    name = type(trainer).__name__
    for wanted in ("model", "args", "data_collator", "train_dataset", "compute_loss", "get_train_dataloader"):
        if not hasattr(trainer, wanted):
            raise ConfigError(f"{name} has no {wanted}; sweep_trainer takes a Trainer of transformers or TRL.")
    for rule in RULES:
        value = getattr(trainer.args, rule.argument, None)
        if value is not None and not rule.fits(value):
            raise ConfigError(
                f"The trainer's {rule.argument} is {_plain(value)}, which a sweep can't do: {rule.instead}."
            )
    if type(trainer.model).__name__.startswith("Peft") or hasattr(trainer.model, "peft_config"):
        raise ConfigError(
            "The trainer's model has adapters of peft; give the trainer the base (no peft_config), and sweep_trainer "
            "the ranks or LoRAConfigs."
        )
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ConfigError("The trainer has an optimizer or schedule of its own (optimizers=...); a sweep has AdamW.")
    if getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
        raise ConfigError("The trainer's optimizer_cls_and_kwargs is set; a sweep has AdamW, so leave it out.")
    for method in OWN_METHODS:
        owner = next((cls for cls in type(trainer).__mro__ if method in vars(cls)), None)
        if owner is not None and not _known(owner):
            raise ConfigError(f"{owner.__name__} has its own {method}, which a sweep does not call.")
    for callback in trainer.callback_handler.callbacks:
        if not _known(type(callback)):
            raise ConfigError(
                f"The trainer has the callback {type(callback).__name__}, which a sweep does not call; remove it with "
                f"trainer.remove_callback({type(callback).__name__})."
            )


def _known(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in HOMES


def settings_of(trainer: Any, steps: int) -> tuple[Training, list[str]]:
    """The settings of every run, and notes for the user.

    Args:
        trainer: From `check_trainer`.
        steps: Of a run.
    """
    args, notes = trainer.args, list[str]()
    warmup = args.get_warmup_steps(steps)
    schedule = _plain(args.lr_scheduler_type)
    if warmup and TRAINER_SCHEDULES[schedule] != "constant":
        notes.append(
            f"The learning rate warms up over {warmup} steps while its schedule runs; transformers' schedule begins "
            "after them."
        )
    if args.weight_decay:
        notes.append("Full fine-tuning decays biases and norms too; transformers leaves them out.")
    if getattr(args, "gradient_checkpointing", False):
        notes.append("Activations are kept, not recomputed (gradient_checkpointing): that takes memory alone.")
    training = Training(
        weight_decay=args.weight_decay,
        optimiser=AdamW(betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon),
        clip=args.max_grad_norm or None,
        batch_size=batch_size_of(args),
        epochs=int(args.num_train_epochs),
        schedule=TRAINER_SCHEDULES[schedule],
        warmup=warmup,
        patience=_patience(trainer),
        weights="best" if _keeps_best(args) else "last",
    )
    return training, notes


def batch_size_of(args: Any) -> int:
    """Examples of an optimiser step."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps


def _keeps_best(args: Any) -> bool:
    if not args.load_best_model_at_end:
        return False
    if args.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise ConfigError(
            f"The trainer keeps the weights with the best {args.metric_for_best_model}; a sweep keeps those with the "
            'lowest loss. Set metric_for_best_model="loss", or load_best_model_at_end=False.'
        )
    return True


def _patience(trainer: Any) -> int | None:
    """Of an EarlyStoppingCallback."""
    from transformers import EarlyStoppingCallback

    found = [c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
    if not found:
        return None
    by_epoch = _plain(trainer.args.eval_strategy) == "epoch"
    if found[0].early_stopping_threshold or not by_epoch or not _keeps_best(trainer.args):
        raise ConfigError(
            "EarlyStoppingCallback stops a sweep's runs by the loss after each epoch; give the trainer "
            'eval_strategy="epoch", load_best_model_at_end=True and no early_stopping_threshold.'
        )
    return found[0].early_stopping_patience
