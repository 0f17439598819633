"""Whether a server takes an adapter, by the server's own published rules, from the content of `adapter_config.json`.

Each rule is one entry: what it sees in the configuration, and the reason it gives. An adapter that no rule objects to
may still be refused for its base: which architectures a server knows is not decided here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PeftConfig = Mapping[str, Any]
"""The content of `adapter_config.json`."""


@dataclass(frozen=True)
class ServingRule:
    """One reason to refuse an adapter.

    Args:
        broken: Whether the configuration breaks it.
        reason: In words, of the configuration.
    """

    broken: Callable[[PeftConfig], bool]
    reason: Callable[[PeftConfig], str]


def _has(field: str) -> Callable[[PeftConfig], bool]:
    return lambda config: bool(config.get(field))


def _names(field: str) -> Callable[[PeftConfig], str]:
    return lambda config: f"{field} is {_shown(config[field])}"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple | set) else str(value)


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be; 16 by default. `MaxLoRARanks` in vllm/config/lora.py, seen in 0.12 to 0.27."""


def max_rank_of(config: PeftConfig) -> int:
    """The largest rank of the adapter, patterns included.

    Examples:
        >>> max_rank_of({"r": 4, "rank_pattern": {"q_proj": 12}})
        12
    """
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def vllm_max_lora_rank(config: PeftConfig) -> int | None:
    """The least --max-lora-rank that vLLM needs for this adapter; None where none is enough.

    Examples:
        >>> vllm_max_lora_rank({"r": 20}), vllm_max_lora_rank({"r": 600})
        (32, None)
    """
    return next((limit for limit in VLLM_RANKS if limit >= max_rank_of(config)), None)


def _is_no_text_writer(config: PeftConfig) -> bool:
    return config.get("task_type") == "SEQ_CLS"


_NO_LORA = ServingRule(
    lambda config: config.get("peft_type", "LORA") != "LORA",
    lambda config: f"it knows LoRA only, and this adapter is of type {config['peft_type']}",
)

VLLM_RULES = (
    _NO_LORA,
    ServingRule(
        lambda config: vllm_max_lora_rank(config) is None,
        lambda config: f"rank {max_rank_of(config)} is above {VLLM_RANKS[-1]}, its largest --max-lora-rank",
    ),
    ServingRule(_has("modules_to_save"), _names("modules_to_save")),
    ServingRule(_has("use_dora"), lambda config: "it does not support DoRA"),
    ServingRule(lambda config: config.get("bias", "none") != "none", _names("bias")),
    ServingRule(_has("lora_bias"), lambda config: "it does not support biases of adapters"),
    ServingRule(
        _has("trainable_token_indices"), lambda config: "it knows no rows of single tokens (trainable_token_indices)"
    ),
    # It reads r and lora_alpha alone, so layers with others would run, wrongly scaled.
    ServingRule(
        _has("rank_pattern"), lambda config: "it scales all layers by one alpha / r, and rank_pattern has others"
    ),
    ServingRule(
        _has("alpha_pattern"), lambda config: "it scales all layers by one alpha / r, and alpha_pattern has others"
    ),
    ServingRule(
        lambda config: config.get("task_type") == "SEQ_2_SEQ_LM", lambda config: "it takes no encoder-decoders"
    ),
)

VLLM_SOURCE = (
    "vllm/lora/peft_helper.py (`PEFTHelper.validate_legal`) and vllm/config/lora.py of github.com/vllm-project/vllm"
)


def _targets(config: PeftConfig) -> Sequence[str]:
    targets = config.get("target_modules") or ()
    return [targets] if isinstance(targets, str) else list(targets)


LLAMA_CPP_RULES = (
    _NO_LORA,
    # The converter ends at a tensor that is neither A nor B.
    ServingRule(_has("modules_to_save"), _names("modules_to_save")),
    ServingRule(_has("use_dora"), lambda config: "it does not support DoRA"),
    ServingRule(lambda config: config.get("bias", "none") != "none", _names("bias")),
    ServingRule(_has("lora_bias"), lambda config: "it does not support biases of adapters"),
    ServingRule(
        _has("trainable_token_indices"), lambda config: "it knows no rows of single tokens (trainable_token_indices)"
    ),
    # It scales by alpha / rank of the tensor, whatever the configuration says.
    ServingRule(_has("use_rslora"), lambda config: "it scales by alpha / r, not by alpha / sqrt(r)"),
    ServingRule(
        _has("alpha_pattern"), lambda config: "it scales all layers by one alpha, and alpha_pattern has others"
    ),
    ServingRule(
        lambda config: any("lm_head" in name for name in _targets(config)),
        lambda config: "lm_head is adapted, which it refuses where it is tied to the embedding",
    ),
    ServingRule(_is_no_text_writer, lambda config: "a classifier is not a model it converts adapters for"),
)

LLAMA_CPP_SOURCE = "convert_lora_to_gguf.py and src/llama-adapter.h (`get_scale`) of github.com/ggml-org/llama.cpp"


def objections(config: PeftConfig, rules: Sequence[ServingRule]) -> list[str]:
    """The reasons for which a server refuses an adapter, or would run it wrongly; none when it takes it.

    Examples:
        >>> objections({"r": 8, "use_dora": True}, VLLM_RULES)
        ['it does not support DoRA']
        >>> objections({"r": 8, "bias": "none"}, LLAMA_CPP_RULES)
        []
    """
    return [rule.reason(config) for rule in rules if rule.broken(config)]
