"""Small random models of the kinds that people fine-tune, each with a batch, its loss and what adapts it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


@dataclass
class Kind:
    """A model, how batches of it are made, and three choices of targets."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: Callable[[Tensor, Batch], Tensor]
    targets: tuple[Any, Any, Any]
    modules_to_save: tuple[str, ...] = ()


class Convolutional(nn.Module):
    """Two convolutions with BatchNorm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(pixels)))
        return self.head(self.drop(F.relu(self.deep(x)).mean((2, 3))))


def mlp() -> nn.Module:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.drop, self.down = nn.Linear(6, 16), nn.Dropout(0.1), nn.Linear(16, 4)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.down(self.drop(F.relu(self.up(pixels))))

    return Mlp()


def numbers(*shape: int, n: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(n))


def labels(rows: int, n: int) -> Tensor:
    return torch.randint(0, 4, (rows,), generator=torch.Generator().manual_seed(n))


def tokens(rows: int, n: int) -> Tensor:
    return torch.randint(1, 40, (rows, 7), generator=torch.Generator().manual_seed(n))


def pixels(*shape: int) -> Callable[[int], Batch]:
    return lambda n: {"pixels": numbers(6, *shape, n=n), "labels": labels(6, n)}


def text(n: int) -> Batch:
    mask = torch.ones(6, 7, dtype=torch.long)
    mask[::2, 5:] = 0
    return {"input_ids": tokens(6, n), "attention_mask": mask, "labels": labels(6, n)}


def causal(n: int) -> Batch:
    batch = dict(text(n))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def to_text(n: int) -> Batch:
    return {"input_ids": tokens(6, n), "decoder_input_ids": tokens(6, n + 99), "labels": tokens(6, n + 198)}


def classes(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs, batch["labels"])


def next_tokens(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def beside(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), batch["labels"].flatten())


def of(name: str, auto: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        # Eager attention calls dropout where the plain loop can answer it.
        config = transformers.AutoConfig.for_model(name, attn_implementation="eager", **settings)
        return getattr(transformers, auto).from_config(config)

    return make


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

KINDS: dict[str, Kind] = {
    "mlp": Kind(mlp, pixels(6), classes, ("all-linear", "up", ["up", "down"]), modules_to_save=("down",)),
    "cnn": Kind(
        Convolutional,
        pixels(3, 8, 8),
        classes,
        (["stem", "deep", "head"], "deep", ["head"]),
        modules_to_save=("norm", "head"),
    ),
    "gpt2": Kind(
        of(
            "gpt2",
            "AutoModelForCausalLM",
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=40,
            n_positions=16,
            use_cache=False,
        ),
        causal,
        next_tokens,
        ("all-linear", ["c_attn"], "re:transformer.h.1.*"),
    ),
    "llama": Kind(
        of(
            "llama",
            "AutoModelForCausalLM",
            vocab_size=40,
            num_key_value_heads=1,
            attention_dropout=0.1,
            use_cache=False,
            **SMALL,
        ),
        causal,
        next_tokens,
        ("all-linear", ["q_proj", "v_proj"], "re:model.layers.1.*"),
        modules_to_save=("lm_head",),
    ),
    "bert": Kind(
        of(
            "bert",
            "AutoModelForSequenceClassification",
            vocab_size=40,
            num_labels=4,
            max_position_embeddings=16,
            **SMALL,
        ),
        text,
        classes,
        ("all-linear", ["query", "value", "word_embeddings"], "re:bert.encoder.layer.1.*"),
        modules_to_save=("classifier",),
    ),
    "vit": Kind(
        of(
            "vit",
            "AutoModelForImageClassification",
            image_size=8,
            patch_size=4,
            num_labels=4,
            hidden_dropout_prob=0.1,
            **SMALL,
        ),
        lambda n: {"pixel_values": numbers(6, 3, 8, 8, n=n), "labels": labels(6, n)},
        classes,
        ("all-linear", ["projection", "q_proj"], "re:vit.*layers?.1.*"),
        modules_to_save=("classifier",),
    ),
    "t5": Kind(
        of(
            "t5",
            "AutoModelForSeq2SeqLM",
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            use_cache=False,
        ),
        to_text,
        beside,
        ("all-linear", ["q", "v"], "re:decoder.block.1.*"),
    ),
}


def call(model: nn.Module, batch: Batch) -> Tensor:
    outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
    return getattr(outputs, "logits", outputs)
