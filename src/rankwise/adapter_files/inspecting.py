r"""Inspect an adapter's folder without its base: settings, modules, sizes, norms and effective ranks.

The singular values of $\Delta = s B A$ come from two thin QR decompositions, $B = Q_B R_B$ and $A^T = Q_A R_A$: they
are those of the small $s R_B R_A^T$, so $\Delta$ is never formed.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.folder import AdapterFile, read_through
from rankwise.adapter_files.peft.config import peft_values, variant_of
from rankwise.lora.variants import VARIANTS


@dataclass(frozen=True)
class InspectedModule:
    """One adapted module.

    Args:
        path: Its name in the base.
        r: Its rank.
        alpha: Numerator of its scale.
        shapes: Of A and B.
        parameters: Numbers of A, B and what the variant trains with them.
        norm: Frobenius norm of the update; None for stacks, whose update is one matrix each.
        largest: Its largest singular value.
        effective_rank: exp of the entropy of its singular values' shares: r where all are equal, 1 where one is all;
            0 of an update that is 0.
    """

    path: str
    r: int
    alpha: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    parameters: int
    norm: float | None
    largest: float | None
    effective_rank: float | None


@dataclass(frozen=True)
class Inspection:
    """The content of a folder.

    Args:
        folder: The adapter's.
        settings: The content of `adapter_config.json`.
        modules: The adapted modules.
        saved: Path of a parameter that is trained in full -> its shape and norm.
        bytes: Size of the tensor file.
        dtypes: Types of the tensors.
        findings: What can't be used, or is not as it was written.
    """

    folder: Path
    settings: dict[str, Any]
    modules: tuple[InspectedModule, ...]
    saved: dict[str, tuple[tuple[int, ...], float]]
    bytes: int
    dtypes: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """All numbers of the adapter."""
        return sum(m.parameters for m in self.modules) + sum(math.prod(shape) for shape, _ in self.saved.values())


def inspect_adapter(folder: Path) -> Inspection:
    """Read an adapter's folder, as peft or Rankwise has written it.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.

    Raises:
        AdapterFileError: A file is missing, damaged or of an unsupported kind.
    """
    findings = Findings(strict=False)
    read = read_through(folder, findings, allow_pickle=False)
    tensors = [tensor for pair in read.parts.pairs.values() for tensor in pair]
    return Inspection(
        folder=folder,
        settings=read.fields,
        modules=tuple(_modules(read)),
        saved={
            path: (tuple(tensor.shape), float(tensor.double().norm()))
            for path, tensor in {**read.parts.replacements, **read.parts.tokens}.items()
        },
        bytes=read.path.stat().st_size,
        dtypes=tuple(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in tensors)),
        findings=tuple(findings.listed),
    )


def _modules(read: AdapterFile) -> list[InspectedModule]:
    fields, parts = read.fields, read.parts
    ranks = peft_values(fields.get("rank_pattern"), fields["r"], parts.pairs)
    alphas = peft_values(fields.get("alpha_pattern"), fields.get("lora_alpha", 8), parts.pairs)
    shared = VARIANTS[variant_of(fields)].shared
    found: list[InspectedModule] = []
    for path, (A, B) in sorted(parts.pairs.items(), key=lambda pair: _natural(pair[0])):
        r = ranks[path]
        s = alphas[path] / (math.sqrt(r) if fields.get("use_rslora") else r)
        own = [*parts.own.get(path, {}).values(), *([parts.biases[path]] if path in parts.biases else [])]
        trained = own if shared else [A, B, *own]
        # Of a stack of experts, and of a grouped convolution, A and B are not the two halves of one matrix.
        # What all modules share says nothing of one of them.
        values = s * singular_values(A, B) if not shared and A.shape[0] == B.shape[1] == r else None
        found.append(
            InspectedModule(
                path=path,
                r=r,
                alpha=alphas[path],
                shapes=(tuple(A.shape), tuple(B.shape)),
                parameters=sum(tensor.numel() for tensor in trained),
                norm=None if values is None else float(values.norm()),
                largest=None if values is None else float(values.max()),
                effective_rank=None if values is None else effective_rank(values),
            )
        )
    return found


def _natural(path: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def singular_values(A: Float[Tensor, "r *d_in"], B: Float[Tensor, "d_out r *rest"]) -> Float[Tensor, " r"]:
    """The singular values of B A, the largest first; kernels of convolutions are taken as matrices.

    Examples:
        >>> singular_values(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [0.0]]))
        tensor([6.], dtype=torch.float64)
    """
    R_A = torch.linalg.qr(A.double().flatten(1).T).R
    R_B = torch.linalg.qr(B.double().flatten(1)).R
    return torch.linalg.svdvals(R_B @ R_A.T)


def effective_rank(values: Float[Tensor, " r"]) -> float:
    r"""The number of directions that an update uses.

    $$\exp\Big(-\sum_i p_i \log p_i\Big), \quad p_i = \sigma_i / \sum_j \sigma_j$$

    Args:
        values: Singular values, of any scale.

    Examples:
        >>> effective_rank(torch.tensor([2.0, 2.0, 0.0])), effective_rank(torch.zeros(3))
        (2.0, 0.0)

    References:
        Roy and Vetterli, The effective rank: a measure of effective dimensionality, 2007.
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values.double() / total).sum().exp())
