"""A base's own settings of generation, put aside while answers are written: the likeliest tokens, or draws, alone."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rankwise.tasks.text.encode.tokens import Tokenizer

_BEGINNINGS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
"""What a decoder begins with is part of the model; all else that generation_config.json sets is a way of choosing."""

_OWN = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "max_new_tokens", "use_cache")
"""Settings that are not named as put aside: of draws and lengths, which a user gives; and of how it is computed."""

_SIGNS = (
    "_token_id",
    "output_",
    "return_dict",
    "_from_model_config",
    "transformers_version",
    "cache_",
    "prompt_lookup",
    "assistant",
)
"""In names of settings that choose no token."""


@contextmanager
def own_settings_aside(model: Any) -> Generator[None]:
    """Remove a model's generation settings inside a `with` block, except those of the decoder's start."""
    from transformers import GenerationConfig

    own = model.generation_config
    kept = {key: value for key in _BEGINNINGS if (value := getattr(own, key, None)) is not None}
    model.generation_config = GenerationConfig(**kept)
    try:
        yield
    finally:
        model.generation_config = own


def own_ends(model: Any, tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model itself would end an answer, stop strings that are their own token too."""
    config = model.generation_config
    ids = config.eos_token_id
    strings = getattr(config, "stop_strings", None) or []
    known = tokenizer.get_vocab()
    return [
        *(ids if isinstance(ids, list) else [] if ids is None else [ids]),
        *(known[text] for text in ([strings] if isinstance(strings, str) else strings) if text in known),
    ]


def put_aside(model: Any, tokenizer: Tokenizer) -> list[str]:
    """A note of the settings that are put aside and would change what the base says; empty where there are none."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return []
    found = [
        name
        for name in config.to_diff_dict()
        if getattr(config, name, None) and name not in _OWN and not any(sign in name for sign in _SIGNS)
    ]
    strings = getattr(config, "stop_strings", None) or []
    if all(text in tokenizer.get_vocab() for text in ([strings] if isinstance(strings, str) else strings)):
        found = [name for name in found if name != "stop_strings"]
    return [f"The model's own {', '.join(found)} are put aside when answers are written."] if found else []
