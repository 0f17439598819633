r"""LoRA-FA: A stays as it was drawn, and B alone is trained.

$$h = W_0 x + s\,B A_0 x$$

A layer trains r d_out numbers, and nothing as wide as its inputs is needed for the backward pass. Files hold A and B as
LoRA's.

References:
    Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, 2023,
    equation 3. https://arxiv.org/abs/2308.03303
"""

from dataclasses import replace
from typing import Any

from rankwise.lora.layer_types import LayerType
from rankwise.lora.variants.lora import A_, B_, LORA


def _obstacle(kind: LayerType, layer: Any) -> str:
    return "A of an embedding starts at 0, and LoRA-FA would leave it there" if kind.reads_indices else ""


LORA_FA = replace(LORA, label="LoRA-FA", tensors=(replace(A_, trained=False), B_), obstacle=_obstacle)
