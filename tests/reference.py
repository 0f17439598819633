"""The slow, obvious versions that the fast code is compared with. Nothing here uses `rankwise.pack`.

`train_alone` is a plain loop over one adapter: hand-written layers, `torch.optim.AdamW`, `clip_grad_norm_`, masks drawn
from the documented key. The definition of a pack is `rankwise.lora.maths.lora_pack`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keyed(*key: object) -> torch.Generator:
    """The documented key: 63 bits of BLAKE2b over the parts joined by "/"."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def dropout_numbers(seed: int, module: str, call: int, step: int, shape: Sequence[int]) -> Tensor:
    """The documented numbers that a mask is drawn from: 16 bits each, four at a draw. Those of small masks come from
    the numbers of several steps, 2^15 in all, of which a step has as many as the next power of two, 1,024 at least."""
    n = math.prod(shape)
    size = max(1024, 2 ** math.ceil(math.log2(n)))
    if n < 2**14:
        block, skipped = divmod(step, 2**15 // size)
        generator, drawn = keyed("noise of steps", seed, module, call, block, size), 2**15
    else:
        generator, skipped, drawn = keyed("noise", seed, module, call, step), 0, n
    quarters = torch.empty(math.ceil(drawn / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = quarters.view(torch.int16)[skipped * size :][:n]
    return ((bits.double() + 2**15) / 2**16).view(tuple(shape))


def mask(seed: int, module: str, step: int, like: Tensor, p: float) -> Tensor:
    """What dropout multiplies with: 0 where u < p, else 1 / (1 - p)."""
    return (dropout_numbers(seed, module, 0, step, like.shape) >= p).to(like) / (1 - p)


@dataclass
class Alone:
    """One adapter to train alone on a stack of layers."""

    r: int
    scale: float
    lr: float
    seed: int
    weight_decay: float = 0.0
    clip: float | None = None
    dropout: float = 0.0
    init: str = "kaiming"
    targets: Sequence[str] = ()
    modules_to_save: Sequence[str] = ()
    schedule: Callable[[int], float] = field(default=lambda step: 1.0)


def initial(alone: Alone, name: str, d_in: int, d_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    u = torch.rand(alone.r, d_in, generator=keyed("init", 0, name))
    return ((2 * u - 1) / d_in**0.5).to(dtype), torch.zeros(d_out, alone.r, dtype=dtype)


def train_alone(
    layers: nn.Sequential, alone: Alone, batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[dict[str, Tensor], list[float]]:
    """Train one adapter on a Sequential of Linear, ReLU, Dropout and LogSoftmax, with the negative log-likelihood.

    Returns:
        The trained tensors ("<module>.A", "<module>.B", "<module>.weight", "<module>.bias") and the loss of each step.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Linear) and name in alone.targets:
            A, B = initial(alone, name, layer.in_features, layer.out_features, layer.weight.dtype)
            tensors[f"{name}.A"], tensors[f"{name}.B"] = A.requires_grad_(), B.requires_grad_()
        if name in alone.modules_to_save:
            for key, value in layer.named_parameters():
                tensors[f"{name}.{key}"] = value.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW(list(tensors.values()), lr=alone.lr, weight_decay=alone.weight_decay)
    losses: list[float] = []
    for step, (x, y) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = alone.lr * alone.schedule(step)
        h = x
        for name, layer in layers.named_children():
            if isinstance(layer, nn.Dropout):
                h = h * mask(alone.seed, name, step, h, layer.p)
            elif isinstance(layer, nn.Linear):
                weight = tensors.get(f"{name}.weight", layer.weight.detach())
                bias = tensors.get(f"{name}.bias", layer.bias.detach())
                out = F.linear(h, weight, bias)
                if f"{name}.A" in tensors:
                    lora_in = h * mask(alone.seed, f"{name}.lora", step, h, alone.dropout) if alone.dropout else h
                    out = out + alone.scale * (lora_in @ tensors[f"{name}.A"].T) @ tensors[f"{name}.B"].T
                h = out
            else:
                h = layer(h)
        loss = F.nll_loss(h, y)
        optimiser.zero_grad()
        loss.backward()
        if alone.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), alone.clip)
        optimiser.step()
        losses.append(loss.item())
    return {key: value.detach() for key, value in tensors.items()}, losses


def update_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the update, all tensors of an adapter together."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"different tensors: {sorted(ours)} and {sorted(theirs)}")
    difference = sum(float((ours[k].double() - theirs[k].double()).square().sum()) for k in theirs)
    update = sum(float((theirs[k].double() - start[k].double()).square().sum()) for k in theirs)
    return (difference / update) ** 0.5
