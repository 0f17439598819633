"""A trainer's arguments: those that a sweep uses, and those that it refuses by name."""

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
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
    ArgumentRule("label_smoothing_factor", _unset, "leave it out; a sweep takes the loss without it"),
    ArgumentRule("bf16_full_eval", _unset, "a sweep evaluates as it trains; leave it out"),
    ArgumentRule("fp16_full_eval", _unset, "a sweep evaluates as it trains; leave it out"),
    ArgumentRule("prediction_loss_only", _unset, 'leave it out, and name what decides: metric="loss"'),
    ArgumentRule("resume_from_checkpoint", _unset, "every run begins at the base; leave it out"),
    ArgumentRule("batch_eval_metrics", _unset, "metrics are taken of single examples; leave it out"),
    ArgumentRule("include_for_metrics", _unset, "metrics get predictions and labels; leave it out"),
    ArgumentRule("label_names", lambda names: not names or list(names) == ["labels"], 'labels must be called "labels"'),
    # TRL's.
    ArgumentRule("packing", _unset, "examples of one row can't be distinguished; set packing=False"),
    ArgumentRule("eval_packing", _unset, "examples of one row can't be distinguished; set eval_packing=False"),
    ArgumentRule("padding_free", _unset, "examples of one row can't be distinguished; set padding_free=False"),
)

TAKEN_OVER = frozenset(
    (
        "per_device_train_batch_size", "learning_rate", "warmup_steps", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16",
        "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy",
    )
)  # fmt: skip
"""Arguments that a sweep reads."""

NOTED = {
    "seed": "the seeds are the sweep's; give them as seeds",
    "data_seed": "each seed of the sweep has its own order of examples",
    "report_to": "give loggers to sweep_trainer as observers",
    "push_to_hub": "no adapter is pushed",
    "tf32": "set torch.backends.cuda.matmul.allow_tf32 yourself",
    "gradient_checkpointing": "activations are kept, not computed anew, which takes memory alone",
    "activation_checkpointing": "activations are kept, not computed anew, which takes memory alone",
    "activation_offloading": "activations stay on the device, which takes memory alone",
    "auto_find_batch_size": "packs are cut to the memory there is, and batches stay as large as they are",
    "full_determinism": "set torch.use_deterministic_algorithms(True) yourself",
}
"""Arguments that change no figure of a run, and that a sweep doesn't follow -> what happens instead."""

WITHOUT_EFFECT = frozenset(
    (
        # Files and the hub; what is shown and logged.
        "output_dir", "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
        "enable_jit_checkpoint",
        "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
        "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
        "log_level",
        "log_level_replica", "disable_tqdm", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
        "trackio_static_space_id",
        "include_num_input_tokens_seen", "skip_memory_metrics", "debug",
        # When and how the trainer evaluates: a sweep does after every epoch, on all of the data.
        "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        # How data are loaded, and details of what a rule refuses.
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context", "dataloader_in_order", "remove_unused_columns", "length_column_name",
        "torch_compile_backend", "torch_compile_mode", "liger_kernel_config", "gradient_checkpointing_kwargs",
        "activation_checkpointing_kwargs", "packing_strategy", "use_cache",
        # One process on one device, which never resumes in the trainer's way.
        "use_cpu", "average_tokens_across_devices", "torch_empty_cache_steps", "accelerator_config",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp_config", "local_rank", "do_train", "do_eval",
        "do_predict",
        # TRL's, which have done their work when the trainer stands: in its model, its data, its collator and its loss.
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "chat_template_path", "dataset_text_field",
        "dataset_kwargs",
        "dataset_num_proc", "eos_token", "pad_token", "max_length", "truncation_mode", "shuffle_dataset",
        "pad_to_multiple_of",
        "completion_only_loss", "assistant_only_loss", "loss_type",
    )
)  # fmt: skip
"""Arguments that change nothing in a sweep, or that its data, model and loss show."""

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
    _refuse_unknown(trainer.args)
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


def _refuse_unknown(args: Any) -> None:
    """Refuse an argument of a release to come that is set, as nothing is known of it.

    Raises:
        ConfigError: There is one.
    """
    known = {*TAKEN_OVER, *NOTED, *WITHOUT_EFFECT, *(rule.argument for rule in RULES)}
    for field in arguments_of(args):
        value = getattr(args, field.name, None)
        if field.name not in known and value != _default(field):
            raise ConfigError(
                f"The trainer's {field.name} is {_plain(value)}, an argument that sweep_trainer doesn't know; leave it "
                f"at its default, {_default(field)}."
            )


def arguments_of(args: Any) -> list[Field[Any]]:
    """Arguments of transformers and TRL; those that a class of the user adds are the user's own."""
    own = {name for cls in type(args).__mro__ if not _known(cls) for name in vars(cls).get("__annotations__", ())}
    return [field for field in fields(args) if field.name not in own] if is_dataclass(args) else []


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _known(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in HOMES


def training_of(trainer: Any, steps: int) -> tuple[Training, list[str]]:
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
    defaults = {field.name: _default(field) for field in arguments_of(args)}
    noted = set[str]()
    for name, instead in NOTED.items():
        value = getattr(args, name, None)
        # An argument and its older name are set together.
        if value and value not in (defaults.get(name), [], ["none"]) and instead not in noted:
            notes.append(f"The trainer's {name}={_plain(value)} has no effect: {instead}.")
            noted.add(instead)
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
    if _plain(args.eval_strategy) != "epoch":
        raise ConfigError(
            f'The trainer keeps the best weights (load_best_model_at_end) with eval_strategy="'
            f'{_plain(args.eval_strategy)}"; a sweep looks after every epoch. Set eval_strategy="epoch".'
        )
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
