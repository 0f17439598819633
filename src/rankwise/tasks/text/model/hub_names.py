"""Names of models that the Hugging Face hub does not have, or that lack their owner: one line at once, with a hint."""

import os
import re
import sys
from pathlib import Path

from rankwise.errors import ConfigError

OWNERS = {
    "sentence-transformers": "all-(MiniLM|mpnet|distilrob|roberta)|paraphrase-|multi-qa-|msmarco-|gtr-t5|sentence-t5",
    "HuggingFaceTB": "SmolLM",
    "Qwen": "Qwen|QwQ",
    "meta-llama": "(Meta-)?Llama-",
    "mistralai": "Mistral|Mixtral|Ministral",
    "google": "gemma|flan-|mt5|byt5|electra|bert_uncased|mobilebert|vit-",
    "microsoft": "phi|deberta|mpnet-base|MiniLM-|resnet|swin|layoutlm",
    "answerdotai": "ModernBERT",
    "BAAI": "bge-",
    "intfloat": "e5-|multilingual-e5",
    "facebook": "opt-|bart-|galactica|xlm-v|wav2vec2|hubert|wmt|nllb|m2m100",
    "EleutherAI": "pythia|gpt-neo|gpt-j",
    "TinyLlama": "TinyLlama",
    "cardiffnlp": "twitter-",
    "bigscience": "bloom|T0",
}
"""Owner -> beginning of the names of models of theirs that are often given without them."""

SECONDS = 5.0
"""The request that asks the hub for a model of this name."""


def owned_name(name: str) -> str | None:
    """Return the whole name of a well-known model.

    Examples:
        >>> owned_name("all-MiniLM-L6-v2"), owned_name("bert-base-uncased")
        ('sentence-transformers/all-MiniLM-L6-v2', None)
    """
    for owner, beginning in OWNERS.items():
        if re.match(beginning, name, re.IGNORECASE):
            return f"{owner}/{name}"
    return None


def check_model_name(name: str) -> None:
    """Refuse a name that is neither a folder, nor kept on this machine, nor, asked once, on the hub.

    transformers would try such a name many times before it fails.

    Raises:
        ConfigError: There is no such model, or the hub can't be reached.
    """
    if Path(name).expanduser().exists() or _is_cached(name):
        return
    owned = "/" in name or "\\" in name
    suggested = None if owned else owned_name(name)
    asked = None if suggested else _ask(name)
    if suggested is None and asked is None:
        return
    give = "check the name on the model's page, or give" if owned else "give owner/name, as on the model's page, or"
    hint = f'; did you mean "{suggested}"?' if suggested else f": {give} a folder."
    raise ConfigError(
        f'There is no folder "{name}", and {asked or "models on the hub have names of the form owner/name"}{hint}'
    )


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name that the hub would have
        return False


def _ask(name: str) -> str | None:
    """Why there is no such model; None where there is one."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "none is kept on this machine (HF_HUB_OFFLINE is set)"
    try:
        HfApi().model_info(name, timeout=SECONDS)
    except RepositoryNotFoundError:
        return "the hub has no model of that name"
    except HFValidationError:
        return "it is no name of a model on the hub"
    except (OSError, *transport_errors()) as error:
        return f"the hub can't be reached ({error})"
    return None


def transport_errors() -> list[type[Exception]]:
    """Exceptions of huggingface_hub's HTTP library, which differs between its versions."""
    names = {"httpx2": "TransportError", "httpx": "TransportError", "requests": "RequestException"}
    return [getattr(sys.modules[library], name) for library, name in names.items() if library in sys.modules]
