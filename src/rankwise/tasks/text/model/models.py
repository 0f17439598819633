"""Language models by folder, hub name or GGUF file, ready for a task, with what the user should know about them."""

import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ConfigError, suggest
from rankwise.tasks.text.data.labels import Labels
from rankwise.tasks.text.encode.tokens import Tokenizer, pad_token_of, text_config
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.model.calls import ModelCall, find_inputs
from rankwise.tasks.text.model.causal import check_causal
from rankwise.tasks.text.model.heads import MeanPooledClassifier, find_head, initial_head
from rankwise.tasks.text.model.silence import silence_transformers
from rankwise.tasks.text.model.source import ModelOptions, ModelSource
from rankwise.tasks.text.model.trained_heads import match_head, reset_outputs

MODEL_TASKS = ("classify", "sft")


@dataclass(frozen=True)
class TextModel:
    """A model ready for a task.

    Args:
        name: As the user gave it.
        model: In eval mode. Its modules have transformers' names, for adapter files.
        tokenizer: Its tokenizer, with a token for padding.
        config: Its configuration.
        call: (model, batch) -> logits, for `Pack(call=...)`.
        encoder_decoder: Whether it is one.
        head: Modules that belong to each adapter, for `Member.modules_to_save`; none for sft.
        new_head: Those of them that begin from the adapter's seed.
        labels: A classifier's, in the order of its outputs.
        notes: Notes for the user.
        labels: What a classifier predicts.
        pad_token: The token for padding that was chosen, where the tokenizer had none.
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    config: Any
    call: ModelCall
    encoder_decoder: bool
    head: tuple[str, ...]
    new_head: tuple[str, ...]
    notes: tuple[str, ...]
    labels: Labels | None = None
    pad_token: str | None = None

    def initial_head(self, seed: int) -> dict[str, Tensor]:
        """The head's tensors before training, for an adapter of this seed."""
        return initial_head(self.model, self.head, self.new_head, seed)

    @property
    def shift(self) -> Callable[[Tensor], Tensor] | None:
        """Labels -> decoder_input_ids of an encoder-decoder, for `as_tensors`."""
        return getattr(self.model, "prepare_decoder_input_ids_from_labels", None) if self.encoder_decoder else None


def load_text_model(
    name: str | Path,
    task: str,
    labels: Labels | None = None,
    options: ModelOptions | None = None,
    *,
    fixed_order: bool = False,
) -> TextModel:
    """Load a model and its tokenizer for a task.

    Args:
        name: A folder, a hub name, or a .gguf file (whose weights are unpacked to `dtype`).
        task: "sft" or "classify".
        labels: For classify, what it predicts.
        options: How; the defaults of `ModelOptions` if None.
        fixed_order: Whether the labels' order is an adapter's and must stay; else that of a trained head is taken.

    Raises:
        ConfigError: There is no such model, it is not one for this task, needs code of its own, or lacks weights.
    """
    if task not in MODEL_TASKS:
        raise ConfigError(
            f'Task "{task}" is not known; there are {", ".join(MODEL_TASKS)}.{suggest(task, MODEL_TASKS)}'
        )
    options = options or ModelOptions()
    source = ModelSource(str(name), options)
    with requires_extra("language models"):
        import_module("transformers")
    with silence_transformers(gguf=source.gguf is not None), torch.random.fork_rng(devices=[]):
        # What transformers draws for a new head is replaced by streams of its own; the user's random state stays.
        config = source.load("AutoConfig")
        tokenizer = source.load("AutoTokenizer")
        size: int = text_config(config).vocab_size
        _, note = pad_token_of(tokenizer, size)
        if task == "sft":
            model, head, new, said = _load_sft(source, config), (), (), None
        else:
            labels, said = match_head(config, labels, fixed_order=fixed_order)
            model, head, new = _load_classifier(source, config, labels, keep_head=said is None)
            said = said if new and not fixed_order else None
    notes = [text for text in (note, said) if text]
    pooled = isinstance(model, MeanPooledClassifier)
    if task == "classify" and options.pooling == "auto" and not pooled and _published_with_mean(source):
        notes.append(
            f'"{source.name}" was trained to give the mean of its outputs, which its own classifier does not read; '
            "--pooling mean does, and learns from fewer texts."
        )
    if source.gguf:
        _forget_gguf(model)
        notes.append(f"The weights of {source.gguf} are unpacked to {options.dtype}.")
    if len(tokenizer) > size:
        notes.append(_too_many_tokens(len(tokenizer), size))
    config = getattr(model, "config", config)
    for part in (config, text_config(config)):
        part.pad_token_id = tokenizer.pad_token_id  # classifiers over causal models find a text's end by it
    config = _with_usable_positions(model, config)
    model.eval().to(torch.device(options.device))
    loaded = TextModel(
        name=str(name),
        model=model,
        tokenizer=tokenizer,
        config=config,
        call=find_inputs(model.encoder if isinstance(model, MeanPooledClassifier) else model),
        encoder_decoder=task == "sft" and bool(getattr(config, "is_encoder_decoder", False)),
        head=head,
        new_head=new,
        notes=tuple(notes),
        labels=labels if task == "classify" else None,
        pad_token=tokenizer.pad_token if note else None,
    )
    if new:
        model.load_state_dict(loaded.initial_head(seed=0), strict=False)
    return loaded


def _too_many_tokens(known: int, size: int) -> str:
    return f"The tokenizer knows {known:,} tokens and the model {size:,}: texts with one of the others can't be read."


def _with_usable_positions(model: nn.Module, config: Any) -> Any:
    """The configuration with the positions that texts can have, where the model counts others too.

    RoBERTa and its kin number positions from the padding token's on.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None
    ]
    if not tables:
        return config
    # A copy: the model's own is saved with what is merged.
    usable = copy(config)
    usable.max_position_embeddings = min(t.num_embeddings - (t.padding_idx or 0) - 1 for t in tables)
    return usable


def _load_sft(source: ModelSource, config: Any) -> nn.Module:
    if getattr(config, "is_encoder_decoder", False):
        auto_class, mapping = "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"
    else:
        auto_class, mapping = "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"
    if not (_has_class(config, mapping) or _has_own_code(config, auto_class)) or _is_encoder(config):
        raise ConfigError(
            f'"{source.name}" ({config.model_type}) is not a causal model nor an encoder-decoder, so it can\'t write '
            "text; take one that can, or the task classify."
        )
    model, missing = source.load_model(auto_class)
    if missing:
        raise ConfigError(
            f'The checkpoint of "{source.name}" has no weights for {len(missing)} parameters of a '
            f"{type(model).__name__} ({sorted(missing)[0]}, ...); is it one of this model?"
        )
    if auto_class == "AutoModelForCausalLM":
        check_causal(model.eval(), text_config(config).vocab_size, source.name)
    return model


def _load_classifier(
    source: ModelSource, config: Any, labels: Labels | None, *, keep_head: bool
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    if labels is None:
        raise ConfigError("A classifier needs its labels; give those of `find_labels`.")
    pooling = source.options.pooling
    own = _has_class(config, "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING")
    if pooling == "model" and not own:
        raise ConfigError(f'"{source.name}" ({config.model_type}) has no classifier of its own; give --pooling mean.')
    if pooling == "mean" or not own:
        encoder, missing = source.load_model(_encoder_class(source, config))
        model = MeanPooledClassifier(encoder, len(labels.names))
        # Zero, like every new bias in transformers; the weight comes from the seed.
        nn.init.zeros_(model.head.bias)
        find_head(model, "encoder", [f"encoder.{name}" for name in missing if not name.startswith("pooler.")])
        return model, ("head",), ("head",)
    names = labels.by_number
    model, missing = source.load_model(
        "AutoModelForSequenceClassification",
        num_labels=len(names),
        id2label=names,
        label2id={name: i for i, name in names.items()},
        problem_type=labels.problem_type,
        in_head=lambda model, name: not name.startswith(f"{model.base_model_prefix}."),
    )
    if not keep_head:
        missing += reset_outputs(model, len(names))
    head, new = find_head(model, model.base_model_prefix, missing)
    return model, head, new


def _encoder_class(source: ModelSource, config: Any) -> str:
    """The class that loads the encoder for pooling; of an encoder-decoder only the encoder."""
    if not getattr(config, "is_encoder_decoder", False):
        return "AutoModel"
    if not _has_class(config, "MODEL_FOR_TEXT_ENCODING_MAPPING"):
        raise ConfigError(
            f'"{source.name}" ({config.model_type}) is an encoder-decoder, and transformers has no class for its '
            "encoder alone, whose outputs would be averaged; give --pooling model, or take another model."
        )
    return "AutoModelForTextEncoding"


def _has_class(config: Any, mapping: str) -> bool:
    from transformers.models.auto import modeling_auto

    return type(config) in getattr(modeling_auto, mapping)


def _has_own_code(config: Any, auto_class: str) -> bool:
    return auto_class in (getattr(config, "auto_map", None) or {})


def _is_encoder(config: Any) -> bool:
    """Whether it is one of the encoders that transformers would turn into a causal model it was not trained as."""
    trained_as = " ".join(config.architectures or ())
    causal = "CausalLM" in trained_as or "LMHead" in trained_as or getattr(config, "is_decoder", False)
    both = getattr(config, "is_encoder_decoder", False)
    return not causal and not both and _has_class(config, "MODEL_FOR_MASKED_LM_MAPPING")


def _published_with_mean(source: ModelSource) -> bool:
    """Whether it is a sentence encoder: published for sentence-transformers, with the mean as its pooling."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        source.place,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    try:
        return bool(found) and bool(json.loads(Path(found).read_text()).get("pooling_mode_mean_tokens"))
    except (OSError, ValueError):
        return False


def _forget_gguf(model: Any) -> None:
    """The weights are unpacked: nothing is quantised any more, and saving must not say so."""
    model.hf_quantizer, model.is_quantized = None, False
    for key in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(key, None)
