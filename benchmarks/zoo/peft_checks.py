"""Files both ways between peft and Rankwise: the same outputs, the same keys."""

import math
import re
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

import rankwise
from rankwise.errors import RankwiseError
from rankwise.lora import LoRAConfig, adapter_tensors
from rankwise.lora.adapter import adapted_layers
from zoo.entry import Batch, Entry, run

if TYPE_CHECKING:
    from zoo.checks import Result

CLOSE = 1e-6
"""Largest difference of float32 outputs, as a share of the largest output; where rounding grows past it inside the
model, outputs must be as close in float64."""

_REFUSED = (ValueError, NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError)
"""What peft raises on what it can't do."""

_EXPERTS = "- peft adapts the experts' parameters in place of the modules that were named"
"""What it does with models of transformers whose experts are fused: a dense layer of the same name gets no adapter."""


_NOT_CALLED = "- peft's adapters do nothing where a weight is read without calling its layer; all others agree"
_OTHERWISE = (
    "- peft's adapters act otherwise where a layer's class has its own forward or its weight is also read; all "
    "others agree"
)
_TWICE = "- peft adds the delta of an attention's out_proj twice; with half of it there all agrees"
_OWN_CLASS = "- peft makes A and B layers of the adapted layer's own class, with parameters that no LoRA has"
_OWN_FORM = (
    "- the file is in a form of Rankwise's own, as its warning says: in peft's A of a grouped convolution are zeros"
)

_MOST_GROUPS = 128
"""Convolutions of more groups are left out of what peft writes: its r must be a multiple, and its A has no groups."""


def check_peft(
    result: "Result", entry: Entry, base: nn.Module, model: nn.Module, batch: Batch, config: LoRAConfig
) -> None:
    """Fill the columns "reads peft" and "read by peft".

    Args:
        result: Takes what is seen.
        entry: What the model was made from.
        base: The model without adapters.
        model: The same with a filled adapter, as Rankwise attached it.
        batch: Inputs.
        config: The adapter's configuration.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        names = list(dict.fromkeys(_of_attention(name, base) for name in adapter_tensors(model)))
        result.checks["reads peft"] = _reads_peft(result, entry, base, batch, names, config, Path(folder, "theirs"))
        model.to(torch.float32)
        result.checks["read by peft"] = _read_by_peft(result, entry, base, model, batch, Path(folder, "ours"))


def _of_attention(name: str, base: nn.Module) -> str:
    """Return the attention's path in the place of its projections': peft has them both or none."""
    owner = name.rpartition(".")[0]
    return owner if isinstance(base.get_submodule(owner), nn.MultiheadAttention) else name


def _keys(folder: Path) -> set[str]:
    """The keys of a file, without the base's own embeddings, which peft writes too where they are adapted."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return {key for key in file.keys() if ".base_layer." not in key or ".lora_" in key}  # noqa: SIM118


def _apart(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference, as a share of the largest value."""
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return float("inf")
    differences = [float((a.double() - b.double()).abs().max()) for a, b in zip(one, other, strict=True)]
    return max(differences) / max(float(tensor.abs().max()) for tensor in one)


def _is_extra(key: str) -> bool:
    """Tell whether a key is of something in A or B beside their weights, which no LoRA has."""
    return bool(re.search(r"\.lora_[AB]\.(?!(weight|bias)$)", key))


def _difference(ours: Path, theirs: Path) -> str:
    """Return in what the keys of two files differ, or nothing."""
    more, fewer = _keys(theirs) - _keys(ours), _keys(ours) - _keys(theirs)
    if more and not fewer and all(map(_is_extra, more)):
        return _OWN_CLASS
    return f"keys differ: {min(more | fewer)}" if more | fewer else ""


def _alike(result: "Result", figure: str, theirs: nn.Module, ours: nn.Module, batch: Batch) -> str:
    """Compare outputs; where they differ, see whether it is by one of peft's known faults and nothing else."""
    far: list[str] = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            try:
                outputs = run(theirs.to(dtype), batch, dtype)
                apart = _apart(outputs, run(ours.to(dtype), batch, dtype))
            except RankwiseError as error:
                return f"- refused here: {error}"
            except _REFUSED as error:
                if not far:
                    return f"- peft's model does not run: {str(error)[:80]}"
                far.append("no float64")
                theirs.to(torch.float32)
                ours.to(torch.float32)
                break
            result.figures[figure] = apart
            if apart <= CLOSE:
                return "ok"
            far.append(f"apart by {apart:.1e} in {str(dtype).removeprefix('torch.')}")
        # Only now: what rounding takes apart must not pass for a fault of peft's.
        return _known_fault(theirs, ours, batch, next(ours.parameters()).dtype) or ", ".join(far)


def _known_fault(theirs: nn.Module, ours: nn.Module, batch: Batch, dtype: torch.dtype) -> str | None:
    """Return the fault of peft's that explains the whole difference."""
    outputs = run(theirs, batch, dtype)
    with _scaled(theirs, _out_projs(theirs), 0.5) as halved:
        if halved and _apart(run(theirs, batch, dtype), run(ours, batch, dtype)) <= CLOSE:
            return _TWICE
    read = {path: lora for path, (_, lora) in adapted_layers(ours).items() if lora.has_reader}
    if not read:
        return None
    for lora in read.values():
        lora.disabled = True
    try:
        without = run(ours, batch, dtype)
        if _apart(outputs, without) <= CLOSE:
            return _NOT_CALLED
        with _scaled(theirs, {*read, *(path.removesuffix(".in_proj_weight") for path in read)}, 0.0):
            return _OTHERWISE if _apart(run(theirs, batch, dtype), without) <= CLOSE else None
    finally:
        for lora in read.values():
            lora.disabled = False


def _out_projs(theirs: nn.Module) -> set[str]:
    """Return the paths of the output projections of peft's attentions."""
    from peft.tuners.lora.layer import MultiheadAttention

    attentions = [name for name, m in theirs.named_modules() if isinstance(m, MultiheadAttention)]
    return {f"{_plain(name)}.out_proj" for name in attentions}


def _plain(name: str) -> str:
    """Return the path in the base of a module of peft's."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@contextmanager
def _scaled(theirs: nn.Module, paths: set[str], factor: float) -> Generator[list[str]]:
    """Change the scales of some of peft's adapters, and yield which there are."""
    found = {
        name: scaling
        for name, module in theirs.named_modules()
        if _plain(name) in paths and isinstance(scaling := getattr(module, "scaling", None), dict)
    }
    before = {name: dict(scaling) for name, scaling in found.items()}
    try:
        for scaling in found.values():
            scaling.update({adapter: scale * factor for adapter, scale in scaling.items()})
        yield list(found)
    finally:
        for name, scaling in found.items():
            scaling.update(before[name])


def _reads_peft(
    result: "Result", entry: Entry, base: nn.Module, batch: Batch, names: list[str], config: LoRAConfig, folder: Path
) -> str:
    import peft

    groups = {name: getattr(base.get_submodule(name), "groups", 1) for name in names}
    names = [name for name in names if groups[name] <= _MOST_GROUPS]
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        target_modules="|".join(map(re.escape, names)),
        rank_pattern={re.escape(name): math.lcm(config.r, groups[name]) for name in names if groups[name] > 1},
    )
    try:
        theirs = peft.get_peft_model(entry.copy(base), settings).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1, generator=generator)
        theirs.save_pretrained(str(folder))
    except _REFUSED as error:
        return f"- peft refuses: {str(error)[:80]}"
    if theirs.peft_config["default"].target_parameters:
        return _EXPERTS
    ours = entry.copy(base)
    try:
        rankwise.load_adapter(ours, folder)
    except RankwiseError as error:
        return _OWN_CLASS if any(map(_is_extra, _keys(folder))) else f"refused: {error}"
    rankwise.save_adapter(ours, folder / "again")
    return _difference(folder / "again", folder) or _alike(result, "reads peft", theirs, ours, batch)


def _read_by_peft(result: "Result", entry: Entry, base: nn.Module, model: nn.Module, batch: Batch, folder: Path) -> str:
    import peft

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        rankwise.save_adapter(model, folder)
    if any("in a form of Rankwise's own" in str(warning.message) for warning in warned):
        return _OWN_FORM
    try:
        theirs = peft.PeftModel.from_pretrained(entry.copy(base), str(folder)).eval()
        theirs.save_pretrained(str(folder / "again"))
    except _REFUSED as error:
        return f"- peft refuses: {str(error)[:80]}"
    if theirs.peft_config["default"].target_parameters:
        return _EXPERTS
    return _difference(folder, folder / "again") or _alike(result, "read by peft", theirs, model, batch)
