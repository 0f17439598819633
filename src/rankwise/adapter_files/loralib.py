"""Files of loralib: a state dict with `<module>.lora_A` and `<module>.lora_B`, and nothing else about the adapter."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.adapter_files.tensor_file import read_pickle, read_tensors
from rankwise.collector import collector_paused
from rankwise.errors import AdapterFileError, suggest
from rankwise.lora.config import LoRAConfig
from rankwise.lora.inject import Report, attach, check_new_name
from rankwise.lora.layer_types.convolution import Convolution
from rankwise.lora.layer_types.sliced import Slice
from rankwise.lora.targets.find import Target, find_targets
from rankwise.lora.targets.modules import base_tensors, named_once
from rankwise.lora.targets.patterns import pinned

Pair = tuple[Tensor, Tensor]


def load_loralib(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    alpha: float,
    name: str = "default",
    *,
    slices: Mapping[str, Sequence[Slice]] | None = None,
    allow_pickle: bool = False,
) -> Report:
    """Attach what `loralib.lora_state_dict` returned to the model as it was before loralib's layers came in.

    loralib stores neither alpha nor which parts of a `MergedLinear` are adapted, so both are arguments here. Biases in
    the file are the adapter's own, as with `LoRAConfig(bias=...)`. Convolutions get a rank of about r kernel^2, since
    loralib's delta runs over channels and kernel alike.

    Args:
        model: The base, of plain layers.
        source: The state dict, or its file: safetensors, or a pickle written by `torch.save`.
        alpha: `lora_alpha` of the layers.
        name: What the adapter is to be called in this model.
        slices: For `MergedLinear`, pattern -> the adapted parts, as `LoRAConfig` takes them:
            `enable_lora=[True, False, True]` is `["0/3", "2/3"]`.
        allow_pickle: Whether the file may be a pickle. Only tensors are taken from it.

    Returns:
        The report of `inject`.

    Raises:
        AdapterFileError: The file is damaged, holds other tensors, or doesn't fit; the model is then untouched.
        AdapterError: The name is taken.

    Examples:
        >>> import torch
        >>> state = {"0.lora_A": torch.ones(1, 3), "0.lora_B": torch.ones(2, 1)}
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> load_loralib(model, state, alpha=1).trainable_parameters
        5

    References:
        https://github.com/microsoft/LoRA, loralib 0.1.2.
    """
    with collector_paused():
        check_new_name(model, name)
        where, state = _state_of(source, allow_pickle)
        pairs, biases = _sorted(where, state)
        known = {path: module for module, paths in named_once(model) for path in paths}
        for path in pairs:
            if path not in known:
                raise AdapterFileError(
                    f'{where} has tensors for "{path}", which the model lacks.{suggest(path, known)} Was it trained on '
                    "another model?"
                )
        alphas = dict.fromkeys(pairs, float(alpha))
        for path, (A, B) in pairs.items():
            if isinstance(layer := known[path], Convolution):
                pairs[path] = _of_convolution(where, path, layer, A, B)
                # The scale is alpha over loralib's r, of which each place along the kernel has a row.
                alphas[path] *= pairs[path][1].shape[1] * layer.kernel_size[0] / A.shape[0]
        ranks = {path: B.shape[1] for path, (_, B) in pairs.items()}
        r = max(ranks.values(), key=[*ranks.values()].count)
        exact = [f"re:{re.escape(path)}" for path in pairs]
        config = LoRAConfig(
            r=r,
            alpha=alpha,
            target_modules=exact,
            rank_pattern=pinned(ranks, r),
            alpha_pattern=pinned(alphas, float(alpha)),
            slices=slices or {},
        )
        targets = find_targets(model, config)
        matrices = {
            target.name: dict(zip("AB", _fitting(where, target, pairs), strict=True)) for target in targets.adapted
        }
        replacements = _biases_that_fit(where, model, biases)
        elsewhere = any(bias.rpartition(".")[0] not in pairs for bias in replacements)
        config = replace(config, bias="all" if elsewhere else "lora_only" if replacements else "none")
        return attach(model, targets, matrices, config, name, replacements)


def _state_of(
    source: str | os.PathLike[str] | Mapping[str, Tensor], allow_pickle: bool
) -> tuple[str, dict[str, Tensor]]:
    if isinstance(source, Mapping):
        return "The state dict", dict(source)
    path = Path(source)
    if not path.is_file():
        raise AdapterFileError(f"{path} is no file; loralib's state dict lies in one.")
    if path.suffix == ".safetensors":
        return str(path), read_tensors(path)[0]
    if not allow_pickle:
        raise AdapterFileError(
            f"{path} is a pickle, an unsafe format. If you trust its source, pass allow_pickle=True; only tensors are "
            "taken from it."
        )
    return str(path), read_pickle(path)


def _sorted(where: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """Return A and B by module path, and biases by their own."""
    halves: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for key, tensor in state.items():
        owner, _, leaf = key.rpartition(".")
        if leaf == "bias":
            biases[key] = tensor
        elif leaf not in ("lora_A", "lora_B") or tensor.ndim != 2 or not tensor.is_floating_point():
            raise AdapterFileError(
                f'{where} has "{key}" of shape {tuple(tensor.shape)} and type {tensor.dtype}; loralib writes matrices '
                '"<module>.lora_A" and "<module>.lora_B", and biases. Save lora_state_dict(model), not state_dict().'
            )
        else:
            halves.setdefault(owner, {})[leaf] = tensor
    for path, half in halves.items():
        for leaf in {"lora_A", "lora_B"} - half.keys():
            raise AdapterFileError(f'{where} has no "{path}.{leaf}", the other half of a pair it has.')
        if 0 in half["lora_A"].shape or 0 in half["lora_B"].shape:
            raise AdapterFileError(f'{where} has tensors without numbers for "{path}".')
    if not halves:
        raise AdapterFileError(f'{where} holds no "lora_A" and "lora_B".')
    return {path: (half["lora_A"], half["lora_B"]) for path, half in halves.items()}, biases


def _fitting(where: str, target: Target, pairs: Mapping[str, Pair]) -> Pair:
    """Return A and B of a target as matrices of ours; those of a MergedLinear lie slice below slice."""
    path = next(path for path in (target.name, *target.aliases) if path in pairs)
    A, B = pairs[path]
    stack = target.stack
    needed = (stack * target.r, target.d_in), (stack * target.d_out, target.r)
    if (tuple(A.shape), tuple(B.shape)) != needed:
        raise AdapterFileError(
            f'lora_A and lora_B of "{path}" in {where} have shapes {tuple(A.shape)} and {tuple(B.shape)}; the '
            f"{type(target.module).__name__} here needs {needed[0]} and {needed[1]}. {_cause(target, A, B)}"
        )
    return A, B.view(stack, target.d_out, target.r).movedim(0, 1).reshape(target.d_out, stack * target.r)


def _cause(target: Target, A: Tensor, B: Tensor) -> str:
    """Guess why shapes differ."""
    parts = A.shape[0] // B.shape[1]
    if parts > 1 and not target.layer_type.slices:
        return f'It is of a MergedLinear with {parts} adapted parts: pass slices={{"{target.name}": [...]}}.'
    return "Was it trained on another model?"


def _of_convolution(where: str, path: str, layer: Convolution, A: Tensor, B: Tensor) -> Pair:
    r"""Return loralib's A and B of a convolution as ours, which is exact and has another rank.

    loralib takes B A, of shape (out / groups * k, in * k), and reads its numbers in their order as the weight's.
    Without groups each output's weights are k rows of it one after another, so with $B_q$ every k-th row of B from the
    q-th on

    $$\Delta W = s \begin{pmatrix} B_0 & \dots & B_{k-1} \end{pmatrix}
      \begin{pmatrix} A & & \\ & \ddots & \\ & & A \end{pmatrix}$$

    which has rank $r k^2$, if the weight's own isn't smaller: then, and with groups, where rows of it don't end with an
    output, one of the two is the identity.

    Raises:
        AdapterFileError: They don't fit the layer.
    """
    k, numel, d_out = layer.kernel_size[0], layer.weight.numel(), layer.out_channels
    needed = ("r * k", layer.in_channels * k), (d_out // layer.groups * k, "r * k")
    fits = A.shape[1] == needed[0][1] and B.shape[0] == needed[1][0] and A.shape[0] == B.shape[1]
    if {*layer.kernel_size} != {k} or not fits or A.shape[0] % k or A.shape[1] * B.shape[0] != numel:
        raise AdapterFileError(
            f'lora_A and lora_B of "{path}" in {where} have shapes {tuple(A.shape)} and {tuple(B.shape)}; loralib\'s '
            f"for the {type(layer).__name__} here would be {needed[0]} and {needed[1]}, k being one number for all "
            f"sides of its kernel {layer.kernel_size}, with {numel} numbers in B A. Was it trained on another model?"
        )
    rank, d_in = A.shape[0] * k, numel // d_out
    if layer.groups == 1 and rank < min(d_out, d_in):
        return torch.block_diag(*[A] * k), B.reshape(d_out, rank)
    delta = (B @ A).view(d_out, d_in)
    identity = torch.eye(min(d_out, d_in), dtype=A.dtype, device=A.device)
    return (delta, identity) if d_out <= d_in else (identity, delta)


def _biases_that_fit(where: str, model: nn.Module, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = base_tensors(model, buffers=False)
    # loralib has a convolution inside its layer, as `conv`.
    plain = {key: re.sub(r"(^|\.)conv\.bias$", r"\1bias", key) for key in biases}
    biases = {plain[key] if key not in own and plain[key] in own else key: it for key, it in biases.items()}
    for key, tensor in biases.items():
        if key not in own or own[key].shape != tensor.shape:
            there = f"has {tuple(own[key].shape)} there" if key in own else "lacks it"
            raise AdapterFileError(
                f'{where} has "{key}" of shape {tuple(tensor.shape)}; the model {there}. '
                "Was it trained on another model?"
            )
    return dict(biases)
