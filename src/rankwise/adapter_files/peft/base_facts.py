"""Facts of the base in a file's settings, as peft writes them: `AutoPeftModelFor...` needs them to load a file."""

from collections.abc import Collection
from typing import Any

from torch import nn

from rankwise.lora.targets.modules import base_tensors, unwrapped, walk
from rankwise.lora.trained_modules import is_inside

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""Suffix of a transformers class name -> peft's name of its task."""

HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""peft's word for a task -> modules that it trains in full with every adapter of that task, where they are there."""


def base_facts(model: nn.Module, replacements: Collection[str]) -> dict[str, Any]:
    """Return the fields that a file has of its base, as far as the model says them; nothing for a plain module.

    Args:
        model: The model.
        replacements: Paths of the parameters that the file holds whole.
    """
    config = getattr(unwrapped(model), "config", None)
    if not hasattr(config, "model_type"):
        return {}
    name = getattr(unwrapped(model), "name_or_path", None) or getattr(config, "_name_or_path", None)
    cls = type(unwrapped(model))
    task = next((task for end, task in _TASKS.items() if cls.__name__.endswith(end)), None)
    if task == "SEQ_2_SEQ_LM" and not getattr(config, "is_encoder_decoder", False):
        task = "CAUSAL_LM"  # models of texts and images
    if getattr(unwrapped(model), "main_input_name", "input_ids") != "input_ids":
        task = None  # peft's models of a task hand on input_ids, and this one reads sounds or images
    # With such a task peft looks for the whole head in the file, and passes over A and B of it.
    heads = [path for path, _ in walk(model) if path.endswith(HEADS.get(task or "", ("\n",)))]
    owned = base_tensors(model, buffers=False)
    if any(path not in replacements for path in owned if is_inside(path.rpartition(".")[0], heads)):
        task = None
    mapping = None if task else {"base_model_class": cls.__name__, "parent_library": cls.__module__}
    return {"base_model_name_or_path": name or None, "task_type": task, "auto_mapping": mapping}
