"""Files both ways between peft and Rankwise: the same outputs, the same keys."""

import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

import rankwise
from rankwise.errors import RankwiseError
from rankwise.lora import LoRAConfig, adapter_tensors
from rankwise.lora.adapter import LoRA, adapted_layers
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
        names = list(adapter_tensors(model))
        result.checks["reads peft"] = _reads_peft(result, entry, base, batch, names, config, Path(folder, "theirs"))
        model.to(torch.float32)
        result.checks["read by peft"] = _read_by_peft(result, entry, base, model, batch, Path(folder, "ours"))


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


def _alike(result: "Result", figure: str, theirs: nn.Module, ours: nn.Module, batch: Batch) -> str:
    with torch.no_grad():
        try:
            outputs = run(theirs, batch, torch.float32)
        except _REFUSED as error:
            return f"- peft's model does not run: {str(error)[:80]}"
        apart = _apart(outputs, run(ours, batch, torch.float32))
        result.figures[figure] = apart
        if apart <= CLOSE:
            return "ok"
        read = [lora for _, lora in adapted_layers(ours).values() if lora.has_reader]
        if read and _apart(outputs, _without(read, ours, batch, torch.float32)) <= CLOSE:
            return _NOT_CALLED
        try:
            outputs, dtype = run(theirs.double(), batch, torch.float64), torch.float64
            wide = _apart(outputs, run(ours.double(), batch, dtype))
        except (RuntimeError, TypeError, ValueError):
            return f"float32 apart by {apart:.1e}; no float64"
        result.figures[f"{figure}, float64"] = wide
        if wide <= CLOSE:
            return "ok"
        if read and _apart(outputs, _without(read, ours, batch, dtype)) <= CLOSE:
            return _NOT_CALLED
        return f"apart by {apart:.1e}, in float64 by {wide:.1e}"


def _without(adapters: list[LoRA], model: nn.Module, batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    """The model's outputs where some of its layers' adapters don't act."""
    for lora in adapters:
        lora.disabled = True
    try:
        return run(model, batch, dtype)
    finally:
        for lora in adapters:
            lora.disabled = False


def _reads_peft(
    result: "Result", entry: Entry, base: nn.Module, batch: Batch, names: list[str], config: LoRAConfig, folder: Path
) -> str:
    import peft

    settings = peft.LoraConfig(r=config.r, lora_alpha=config.alpha, target_modules="|".join(map(re.escape, names)))
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
        return f"refused: {error}"
    rankwise.save_adapter(ours, folder / "again")
    if _keys(folder / "again") != _keys(folder):
        return f"keys differ: {sorted(_keys(folder / 'again') ^ _keys(folder))[0]}"
    return _alike(result, "reads peft", theirs, ours, batch)


def _read_by_peft(result: "Result", entry: Entry, base: nn.Module, model: nn.Module, batch: Batch, folder: Path) -> str:
    import peft

    rankwise.save_adapter(model, folder)
    try:
        theirs = peft.PeftModel.from_pretrained(entry.copy(base), str(folder)).eval()
        theirs.save_pretrained(str(folder / "again"))
    except _REFUSED as error:
        return f"- peft refuses: {str(error)[:80]}"
    if theirs.peft_config["default"].target_parameters:
        return _EXPERTS
    if _keys(folder / "again") != _keys(folder):
        return f"keys differ: {sorted(_keys(folder / 'again') ^ _keys(folder))[0]}"
    return _alike(result, "read by peft", theirs, model, batch)
