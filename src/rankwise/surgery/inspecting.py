"""Inspect an adapter's folder without its base: settings, modules, sizes, norms and spectra."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.adapter_files.findings import Findings
from rankwise.adapter_files.folder import AdapterFile, read_through
from rankwise.adapter_files.peft.config import variant_of
from rankwise.adapter_files.updates import updates_of
from rankwise.lora.variants import VARIANTS
from rankwise.surgery.report import natural
from rankwise.surgery.spectra import effective_rank, stable_rank, thin_svd


@dataclass(frozen=True)
class InspectedModule:
    """One adapted module.

    Args:
        path: Its name in the base.
        r: Its rank.
        alpha: Numerator of its scale.
        shapes: Of A and B.
        parameters: Numbers of A, B and what the variant trains with them.
        norm: Frobenius norm of the update; None where all modules share one A and B, which says nothing of one of them.
        largest: Its largest singular value.
        stable_rank: Its squared norm over its squared largest singular value.
        effective_rank: exp of the entropy of its singular values' shares: r where all are equal, 1 where one is all;
            0 of an update that is 0.
        singular_values: The largest first. Of a stack of matrices (experts, groups of a convolution), whose ranks here
            are means, the root mean square of each place.
    """

    path: str
    r: int
    alpha: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    parameters: int
    norm: float | None
    largest: float | None
    stable_rank: float | None
    effective_rank: float | None
    singular_values: tuple[float, ...] | None


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
        modules=tuple(_modules(read, findings)),
        saved={
            path: (tuple(tensor.shape), float(tensor.double().norm()))
            for path, tensor in {**read.parts.replacements, **read.parts.tokens}.items()
        },
        bytes=read.path.stat().st_size,
        dtypes=tuple(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in tensors)),
        findings=tuple(findings.listed),
    )


def _modules(read: AdapterFile, findings: Findings) -> list[InspectedModule]:
    parts, updates = read.parts, updates_of(read, findings)
    shared = bool(VARIANTS[variant_of(read.fields)].shared)
    modules: list[InspectedModule] = []
    for path in sorted(updates, key=natural):
        update, pair = updates[path], parts.pairs[path]
        own = [*parts.own.get(path, {}).values(), *([parts.biases[path]] if path in parts.biases else [])]
        S = None if shared else abs(update.scale) * thin_svd(update.pair.A, update.pair.B)[1]
        modules.append(
            InspectedModule(
                path=path,
                r=update.r * update.pair.growth,
                alpha=update.alpha,
                shapes=(tuple(pair[0].shape), tuple(pair[1].shape)),
                parameters=sum(tensor.numel() for tensor in (own if shared else [*pair, *own])),
                norm=None if S is None else float(S.norm()),
                largest=None if S is None else float(S.max()),
                stable_rank=None if S is None else sum(map(stable_rank, S)) / len(S),
                effective_rank=None if S is None else sum(map(effective_rank, S)) / len(S),
                singular_values=None if S is None else tuple(S.square().mean(0).sqrt().tolist()),
            )
        )
    return modules
