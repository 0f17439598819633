"""What the settings of a file say of the base, as peft writes it: `AutoPeftModelFor...` loads nothing without it."""

from collections.abc import Collection
from typing import Any

from torch import nn

from rankwise.lora.modules import unwrapped

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""How the name of a class of transformers ends -> peft's word for its task."""

HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""peft's word for a task -> modules that it trains whole with every adapter of that task, where they are there."""


def base_facts(model: nn.Module, adapted: Collection[str]) -> dict[str, Any]:
    """Return the fields that a file has of its base, as far as the model says them; nothing for a plain module.

    Args:
        model: The model.
        adapted: Paths of its adapted modules.
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        return {}
    name = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    cls = type(model)
    task = next((task for end, task in _TASKS.items() if cls.__name__.endswith(end)), None)
    if task == "SEQ_2_SEQ_LM" and not getattr(config, "is_encoder_decoder", False):
        task = "CAUSAL_LM"  # models of texts and images
    # With such a task peft would take a head that has A and B for one that is trained whole, and lose them.
    heads = HEADS.get(task or "", ())
    if any(piece.endswith(heads) for path in adapted for piece in path.split(".")) if heads else False:
        task = None
    mapping = None if task else {"base_model_class": cls.__name__, "parent_library": cls.__module__}
    return {"base_model_name_or_path": name or None, "task_type": task, "auto_mapping": mapping}
