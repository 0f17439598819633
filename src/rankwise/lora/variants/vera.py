r"""VeRA: one random A and B, frozen, serve all layers; each layer trains two vectors.

$$h = W_0 x + \Lambda_b B \Lambda_d A x, \qquad \Lambda_d = \mathrm{diag}(d),\; \Lambda_b = \mathrm{diag}(b)$$

A (r, the most inputs of a layer) and B (the most outputs, r) are drawn from the adapter's seed; a layer reads the first
columns of A and the first rows of B. d starts at 0.1 and b at 0, so training begins at the base model. A layer trains
r + d_out numbers, and there is no scale: alpha has no part in it.

References:
    Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, 2023, equation 2 and section 3.2.
    https://arxiv.org/abs/2310.11454
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.peft_form import PeftForm
from rankwise.lora.variants.variant import Site, Sizes, Variant, VariantTensor, VariantTensors

D_INITIAL = 0.1
"""The initial value of d (Kopiczko et al., table 6c: no more than 0.1)."""

_PLAIN: Any = {"device": "cpu", "dtype": torch.float32}
"""Whatever device and type a program has made the default."""


def _start(site: Site) -> dict[str, Tensor]:
    d, b = torch.full((site.sizes.r,), D_INITIAL, **_PLAIN), torch.zeros(site.sizes.d_out, **_PLAIN)
    return {"lambda_d": d, "lambda_b": b}


def _share(sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Draw A and B as PEFT does: A, then B, from one generator, uniform with Kaiming's bound for the inputs of each."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def drawn(rows: int, columns: int) -> Tensor:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))
        return torch.empty(rows, columns, **_PLAIN).uniform_(-bound, bound, generator=generator)

    return {"A": drawn(sizes.r, sizes.d_in), "B": drawn(sizes.d_out, sizes.r)}


def _low_rank(kind: LayerType, layer: Any, tensors: VariantTensors) -> tuple[Tensor, Tensor]:
    """The layer's own A and B: diag(d) A and diag(b) B, cut to its inputs and outputs."""
    d_in, d_out = kind.dims(layer)
    A, B = tensors["A"][:, :d_in], tensors["B"][:d_out]
    return tensors["lambda_d"].unsqueeze(1) * A, tensors["lambda_b"].unsqueeze(1) * B


def _forward(
    kind: LayerType,
    layer: Any,
    x: Tensor,
    y: Tensor,
    tensors: VariantTensors,
    scale: float,
    rest: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Tensor:
    return kind.update(layer, x, *_low_rank(kind, layer, tensors), *rest, **named)


def _delta(kind: LayerType, layer: Any, tensors: VariantTensors, scale: float) -> Tensor:
    return kind.delta(layer, *_low_rank(kind, layer, tensors))


def _obstacle(kind: LayerType, layer: Any) -> str:
    return "" if kind.is_linear_map else 'VeRA adapts linear layers only; use variant="lora", or exclude_modules'


_ALONE = ("rank_pattern", "alpha_pattern", "slices", "trainable_tokens")


def _conflict(config: Any) -> str:
    given = [name for name in _ALONE if getattr(config, name)] + ["bias"] * (config.bias != "none")
    return f"has one A and B for all layers and no alpha, so {given[0]} can't be set; leave it out." if given else ""


VERA = Variant(
    "VeRA",
    (
        VariantTensor("A", lambda sizes: (sizes.r, sizes.d_in), trained=False, shared=True, rank_dim=0, key="vera_A"),
        VariantTensor("B", lambda sizes: (sizes.d_out, sizes.r), trained=False, shared=True, rank_dim=1, key="vera_B"),
        VariantTensor("lambda_d", lambda sizes: (sizes.r,), rank_dim=0, key="vera_lambda_d"),
        VariantTensor("lambda_b", lambda sizes: (sizes.d_out,), key="vera_lambda_b"),
    ),
    _start,
    _forward,
    _delta,
    share=_share,
    obstacle=_obstacle,
    conflict=_conflict,
    transposes=False,
    peft=PeftForm(
        "VERA",
        words={"lora_dropout": "vera_dropout", "init_lora_weights": "init_weights"},
        lacks=(
            *("alpha_pattern", "exclude_modules", "lora_alpha", "lora_bias", "rank_pattern", "target_parameters"),
            *("trainable_token_indices", "use_dora", "use_rslora"),
        ),
        written=lambda config: {"d_initial": D_INITIAL, "projection_prng_key": config.seed, "save_projection": True},
        read=lambda fields: {"seed": fields.get("projection_prng_key", 0)},
        fields=("d_initial", "projection_prng_key", "save_projection"),
    ),
)
