"""A mean-pooled classifier as a folder of sentence-transformers: encoder, mean, and a dense layer for the head.

The format is three modules in a row, named in `modules.json`; the encoder lies in the folder itself, so transformers
loads that alone, and no code comes with it.

References:
    https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from rankwise.tasks.text.sidecar import write_sidecar

HEAD = "2_Dense/model.safetensors"
"""The head, as `linear.weight` and `linear.bias`."""

_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
"""Folder -> class of sentence_transformers.models."""


def write_sentence_encoder(folder: Path, head: nn.Linear, max_length: int) -> None:
    """Write what makes of an encoder's folder a model of sentence-transformers whose outputs are the head's.

    Args:
        folder: Where the encoder and its tokenizer have been saved.
        head: The layer on the mean of the encoder's outputs.
        max_length: The most tokens of a text.

    Raises:
        OutputError: The folder can't be written.
    """
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(_MODULES.items())
    ]
    write_sidecar(folder / "modules.json", modules)
    write_sidecar(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_sidecar(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": head.in_features,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
    )
    dense = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_sidecar(folder / "2_Dense" / "config.json", dense)
    state = {f"linear.{key}": value.detach().contiguous() for key, value in head.state_dict().items()}
    save_file(state, folder / HEAD, metadata={"format": "pt"})
