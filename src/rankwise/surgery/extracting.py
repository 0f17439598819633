"""A LoRA of the difference between a fine-tuned model and its base."""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rankwise.adapter_files.folder import FileBase, OtherTensors, write_adapter
from rankwise.adapter_files.peft.base_facts import base_facts
from rankwise.adapter_files.peft.layer_tensors import form_of
from rankwise.adapter_files.peft.paths import PeftPaths
from rankwise.errors import AdapterFileError
from rankwise.lora.config import LoRAConfig
from rankwise.lora.layer_types import LayerType, layer_type_of, obstacle
from rankwise.lora.targets.modules import base_tensors, named_once
from rankwise.lora.targets.ties import flip
from rankwise.lora.trained_modules import joined
from rankwise.surgery.folders import new_folder
from rankwise.surgery.rank_rules import RankRule, rank_rule
from rankwise.surgery.report import SurgeryReport, WrittenUpdate
from rankwise.surgery.spectra import balanced, leading_svd
from rankwise.surgery.weight_files import WeightFiles, architecture

SMALL = 0.05
"""Share of a model's parameters up to which a module that LoRA can't adapt is saved whole."""

_User = tuple[nn.Module, Sequence[str], LayerType]

_FAR = 0.5
"""Relative error from which a layer's difference is called not low-rank."""


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    model: nn.Module | None = None,
    base_name: str | None = None,
) -> SurgeryReport:
    r"""Write the LoRA that is nearest to what full fine-tuning changed.

    For each adaptable layer $B A$ is the best approximation of $W_{tuned} - W_{base}$ of its rank (Eckart and Young,
    1936); scale 1 at the largest rank. One pair of weights at a time is in memory. Biases of these layers are saved
    with them; other modules that differ (norms, a new head) are saved whole, as `modules_to_save`, where they are
    small. The report's notes name what is far from low rank and what is left out.

    Args:
        base: Folder (or file) of the base's weights in safetensors, shards included.
        tuned: Of the fine-tuned model.
        out: The adapter's new folder.
        rank: Rank of every layer, at most its own smaller side.
        energy: A rank for each layer: the smallest that leaves this share of its squared Frobenius norm.
        error: A rank for each layer: the smallest whose relative error is at most this.
        model: The fine-tuned model's modules, with or without numbers (device "meta"), for models that config.json
            doesn't describe.
        base_name: What the adapter calls its base; by default `base`.

    Returns:
        Each layer's rank, and its distance from the exact difference.

    Raises:
        ConfigError: Not exactly one of rank, energy and error is given, or it is out of its range.
        AdapterFileError: Weights are missing or damaged, or base and tuned have other shapes, or don't differ.
        OutputError: `out` is not empty, or can't be written.

    Examples:
        >>> import rankwise, tempfile
        >>> from safetensors.torch import save_file
        >>> base = {"0.weight": torch.eye(4)}
        >>> tuned = {"0.weight": torch.eye(4) + torch.outer(torch.ones(4), torch.arange(4.0))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(base, folder + "/base.safetensors")
        ...     save_file(tuned, folder + "/tuned.safetensors")
        ...     layers = nn.Sequential(nn.Linear(4, 4, bias=False))
        ...     files = folder + "/base.safetensors", folder + "/tuned.safetensors"
        ...     report = rankwise.extract(*files, folder + "/lora", rank=1, model=layers)
        >>> report.error < 1e-6
        True
    """
    rule = rank_rule(rank, energy, error)
    before, after = WeightFiles(base), WeightFiles(tuned)
    model = architecture(after.folder) if model is None else model
    parts = _Parts(model, before, after)
    parts.check_names()
    for module, names in named_once(model):
        parts.take(module, names, rule)
    parts.leave_unknown()
    if not parts.pairs and not parts.saved and not parts.left_out:
        raise AdapterFileError(f"{base} and {tuned} have the same weights; there is nothing to extract.")
    if not parts.pairs:
        others = [*parts.saved, *parts.left_out]
        raise AdapterFileError(
            f'{tuned} differs from {base} in no layer that LoRA adapts, only in {len(others)} others ("{others[0]}").'
        )
    with new_folder(out) as folder:
        parts.write(folder, base_name or str(base))
    parameters = sum(tensor.numel() for pair in parts.pairs.values() for tensor in pair)
    return SurgeryReport(Path(out), tuple(parts.updates), parameters, tuple(parts.notes()))


@dataclass
class _Parts:
    """What the adapter is made of.

    Args:
        model: The model's modules.
        before: The base's weights.
        after: The tuned ones.
        pairs: Module path -> A and B as PEFT shapes them, scale 1.
        key_ends: Module path -> ends of their keys.
        updates: Each layer's error.
        saved: Paths of the modules that are saved whole.
        left_out: What differs and is not in the adapter.
        bias: Whether a bias of an adapted layer differs.
    """

    model: nn.Module
    before: WeightFiles
    after: WeightFiles
    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    key_ends: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    updates: list[WrittenUpdate] = field(default_factory=list[WrittenUpdate])
    saved: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    bias: bool = False

    def take(self, module: nn.Module, names: Sequence[str], rule: RankRule) -> None:
        """Take in what differs in a module's own parameters."""
        path = names[0]
        if any(path == outer or path.startswith(f"{outer}.") for outer in self.saved):
            return
        differing = [leaf for leaf in _own(module) if self._is_changed(joined(path, leaf))]
        if path in self.pairs and "weight" in differing:  # adapted with another layer that has the same weight
            differing.remove("weight")
        kind = layer_type_of(module)
        is_new = any(self._base_key(joined(path, leaf)) is None for leaf in differing)
        if "weight" in differing and kind is not None and not is_new and _is_adaptable(module, kind):
            self._adapt(module, names, kind, rule)
            differing.remove("weight")
        if differing == ["bias"] and path in self.pairs:
            self.bias = True
        elif differing:
            self._save(module, path, differing)

    def check_names(self) -> None:
        """Raise where no tensor of the model is in both files."""
        tuned = [name for name in self._tensors if self._tuned_key(name) is not None]
        if not any(self._base_key(name) for name in tuned):
            first = f', where the first is "{tuned[0]}"' if tuned else ""
            raise AdapterFileError(
                f"{self.before.place} has no tensor of {self.after.place}{first}. Give the base that was fine-tuned, "
                "and the model as model= where config.json doesn't describe it."
            )

    def leave_unknown(self) -> None:
        """Name what differs in the files under no name of the model's: files of some mixtures of experts hold each
        expert by itself, where the code has them in one stack.
        """
        known = {self._tuned_key(name) for name in self._tensors}
        for key in self.after.keys():  # noqa: SIM118
            before = self._base_key(key)
            if key not in known and (
                before is None
                or self.before.shape(before) != self.after.shape(key)
                or not torch.equal(self.before.read(before).double(), self.after.read(key).double())
            ):
                self.left_out.append(key)

    def _is_changed(self, name: str) -> bool:
        keys = self._base_key(name), self._tuned_key(name)
        if keys[1] is None:
            if keys[0] is None or name in self._tied or not isinstance(self._tensors[name], nn.Parameter):
                return False
            raise AdapterFileError(f'{self.after.place} has no "{name}", which {self.before.place} has.')
        if keys[0] is None:
            return True
        shapes = self.before.shape(keys[0]), self.after.shape(keys[1])
        if shapes[0] != shapes[1]:
            raise AdapterFileError(
                f'"{name}" has shape {shapes[0]} in {self.before.place} and {shapes[1]} in {self.after.place}; one '
                "base is needed. If the vocabulary was enlarged, resize the base's embeddings "
                "(resize_token_embeddings), save it and extract from that."
            )
        return not torch.equal(self.before.read(keys[0]).double(), self.after.read(keys[1]).double())

    def _adapt(self, module: nn.Module, names: Sequence[str], kind: LayerType, rule: RankRule) -> None:
        name = joined(names[0], "weight")
        keys = self._base_key(name) or "", self._tuned_key(name) or ""
        delta = self.after.read(keys[1]).double() - self.before.read(keys[0]).double()
        matrix = delta.mT if kind.transposed else delta.flatten(1)
        U, S, Vt = leading_svd(matrix, rule.rank)
        A, B = balanced(U, S, Vt, min(rule.of(S), *matrix.shape))
        norm, distance = float(matrix.norm()), float((matrix - B.float().double() @ A.float().double()).norm())
        for user, paths, own in self._users(module, names, kind):
            flipped = own.transposed != kind.transposed
            form = form_of(own)
            self.pairs[paths[0]] = form.write(own, user, *(flip(A, B) if flipped else (A, B)))
            self.key_ends[paths[0]] = form.keys
            self.updates.append(WrittenUpdate(paths[0], A.shape[0], norm, distance))

    def _users(self, module: nn.Module, names: Sequence[str], kind: LayerType) -> Iterator[_User]:
        """The layers that have one weight."""
        for other, paths in named_once(self.model):
            own = layer_type_of(other)
            if other is module:
                yield module, names, kind
            elif own is not None and getattr(other, "weight", None) is module.weight:
                yield other, paths, own

    def _save(self, module: nn.Module, path: str, differing: Sequence[str]) -> None:
        """Save a module whole where it is small; a new one with all that is new around it."""
        outer = path
        while outer and all(self._base_key(name) is None for name in self._inside(outer.rpartition(".")[0])):
            outer = outer.rpartition(".")[0]
        inside = self._inside(outer)
        new = any(self._base_key(name) is None for name in inside)
        size = sum(self._tensors[name].numel() for name in inside)
        total = sum(p.numel() for p in self.model.parameters())
        if outer and (new or size <= SMALL * total):
            self.saved.append(outer)
            for pair in [p for p in self.pairs if p == outer or p.startswith(f"{outer}.")]:
                del self.pairs[pair], self.key_ends[pair]
            self.updates = [update for update in self.updates if update.path in self.pairs]
        else:
            self.left_out += [joined(path, leaf) for leaf in differing]

    def _inside(self, path: str) -> list[str]:
        """The parameters and buffers of a module, as far as the tuned weights have them."""
        names = (name for name in self._tensors if not path or name.startswith(f"{path}."))
        return [name for name in names if self._tuned_key(name) is not None]

    @functools.cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """Path -> parameter or buffer of the model."""
        return base_tensors(self.model)

    @functools.cached_property
    def _tied(self) -> set[str]:
        """Paths of tensors that have another path too: files hold them under one."""
        paths: dict[int, list[str]] = {}
        for path, tensor in self._tensors.items():
            paths.setdefault(id(tensor), []).append(path)
        return {path for users in paths.values() if len(users) > 1 for path in users}

    def _base_key(self, name: str) -> str | None:
        return self._key(self.before, name)

    def _tuned_key(self, name: str) -> str | None:
        return self._key(self.after, name)

    def _key(self, weights: WeightFiles, name: str) -> str | None:
        """What a file calls a tensor of the model: with or without the name of the model inside it."""
        prefix = f"{getattr(self.model, 'base_model_prefix', '')}."
        return next((key for key in (name, name.removeprefix(prefix), f"{prefix}{name}") if key in weights), None)

    def write(self, folder: Path, base_name: str) -> None:
        """Write the adapter."""
        whole = {name for path in self.saved for name in self._inside(path)}
        biases = {f"{path}.bias" for path in self.pairs} if self.bias else set[str]()
        whole |= {name for name in biases if self._tuned_key(name) is not None}
        r = max(A.shape[0] for A, _ in self.pairs.values())
        config = LoRAConfig(
            r=r,
            alpha=r,
            target_modules=tuple(self.pairs),
            modules_to_save=tuple(self.saved),
            bias="lora_only" if self.bias else "none",
        )
        roots = {path: math.sqrt(r / A.shape[0]) for path, (A, _) in self.pairs.items()}  # of the scale alpha / r
        write_adapter(
            folder,
            config,
            {path: ((A / roots[path]).float(), (B / roots[path]).float()) for path, (A, B) in self.pairs.items()},
            others=OtherTensors(
                replacements={
                    PeftPaths({}, (), ()).saved_name(name, self.pairs): self.after.read(key)
                    for name in sorted(whole)
                    if (key := self._tuned_key(name)) is not None
                },
                key_ends=self.key_ends,
            ),
            base=FileBase(
                facts=base_facts(self.model, whole),
                model_names=[names[0] for _, names in named_once(self.model)],
                fan_in_fan_out=all(_is_conv1d(self.model.get_submodule(path)) for path in self.pairs),
            ),
            base_name=base_name,
        )

    def notes(self) -> Iterator[str]:
        """Say what is not in A and B."""
        far = [update for update in self.updates if update.error > _FAR]
        if far:
            yield (
                f"{len(far)} of {len(self.updates)} modules changed in ways that are not of low rank: their relative "
                f"error is above {_FAR:g}."
            )
        if self.bias:
            yield "Biases of the adapted layers are saved with them."
        if self.saved:
            yield f"Saved whole (modules_to_save), {len(self.saved)} modules: {_listed(self.saved)}."
        if self.left_out:
            yield f"Not in the adapter, though they differ, {len(self.left_out)} tensors: {_listed(self.left_out)}."


def _own(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def _is_adaptable(module: nn.Module, kind: LayerType) -> bool:
    # An attention reads the weight of its out_proj and never calls it.
    is_read = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return kind.outputs is not None and not is_read and not obstacle(module)


def _is_conv1d(module: nn.Module) -> bool:
    kind = layer_type_of(module)
    return kind is not None and kind.name == "Conv1D"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
