"""What is checked on every model of the zoo: attach, train mode, gradients, merge, files, and that the base is untouched.

Outputs are compared in float64, where a fault stands out from rounding by ten orders of magnitude, and relative to what
the adapter changes; a model that computes in float32 inside can't be distinguished as finely, so the limit is `CLOSE`. float32
is used where float64 fails.
"""

import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import rankwise
from rankwise.errors import RankwiseError
from rankwise.lora import LoRAConfig, adapter_tensors
from rankwise.lora.adapter import adapted_layers
from zoo.entry import Batch, Entry, run
from zoo.kinds import select
from zoo.quiet import training_without_noise

CLOSE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest difference of outputs, as a share of what the adapter changes in them."""

COLUMNS = (
    "same at B = 0", "warning", "train = eval", "gradients", "merge", "unmerge", "file", "untouched", "eject",
    "reads peft", "read by peft",
)  # fmt: skip


@dataclass
class Result:
    """What was seen on one model.

    Args:
        name: The model.
        kinds: Which layers were to be adapted: "linear" or "all".
        status: "right", "refused", "wrong", "no such layer", "unusable" (the model itself fails), "time".
        checks: Column -> "ok", "-" or what is wrong; "-" with a reason after it where a check says nothing.
        note: Why it was refused, or what went wrong.
        adapted: Modules with an adapter.
        unreached: Of these, those that the base's own output does not depend on.
        left_out: Reason -> number of layers of the wanted kinds without an adapter.
        figures: Name -> number.
        group: The model's kind: decoder, vision, ...
    """

    name: str
    kinds: str
    status: str = "right"
    checks: dict[str, str] = field(default_factory=dict)
    note: str = ""
    adapted: int = 0
    unreached: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    group: str = ""

    def judge(self) -> "Result":
        """Set the status from the checks."""
        wrong = [f"{column}: {said}" for column, said in self.checks.items() if said != "ok" and said[:1] != "-"]
        if wrong:
            self.status, self.note = "wrong", "; ".join(wrong)
        return self


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Norm of the difference over all outputs; infinite where their number or shapes differ."""
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        return float("inf")
    squares = [((a.double() - b.double()) ** 2).sum() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal bit for bit, the sign of zero included."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        for a, b in zip(one, other, strict=True)
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def fill(model: nn.Module) -> None:
    """Give A and B random values, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for pair in adapter_tensors(model).values():
            for parameter in pair:
                parameter.normal_(std=0.1, generator=generator)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Return the keys that are gone, new, or differ in a bit."""
    differing = [key for key in before if key in after and not same_bits([before[key]], [after[key]])]
    return sorted(before.keys() ^ after.keys()) + differing


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Change a model's type and leave it in eval mode; what it kept of its weights in the old type goes."""
    return model.to(dtype).train().eval()


def said(wrong: bool, what: str) -> str:
    return what if wrong else "ok"


def check(entry: Entry, kinds: str, with_peft: bool = True, r: int = 4) -> Result:
    """Run all checks on one model.

    Args:
        entry: The model.
        kinds: "linear" (target_modules="all-linear") or "all" (linear, convolution and embedding layers).
        with_peft: Also compare with peft, both ways.
        r: Rank of the adapters.
    """
    result = Result(entry.name, kinds)
    base, model, batch = entry.build(), entry.build(), entry.batch()
    with torch.no_grad():
        clean = run(base, batch, torch.float32)
        # Torch takes products of weights that need no gradient in another order: freezing alone may change last bits.
        frozen = run(entry.copy(base).requires_grad_(False), batch, torch.float32)
    if not clean or not all(bool(torch.isfinite(tensor).all()) for tensor in clean):
        result.status, result.note = "unusable", "its own output is not finite"
        return result
    targets, result.left_out = select(base, kinds)
    if not targets:
        result.status = "refused" if result.left_out else "no such layer"
        result.note = "; ".join(result.left_out) or f"it has no {kinds} layer"
        return result
    config = LoRAConfig(r=r, alpha=2.0 * r, target_modules=targets)
    try:
        _attach(result, model, config, batch, frozen, _reached(entry.copy(base), batch, torch.float32))
        fill(model)
        dtype = _widest(entry.copy(base), batch)
        result.figures["float"] = 64.0 if dtype == torch.float64 else 32.0
        moving = _on_outputs(result, entry, base, model, batch, dtype)
        if with_peft:
            from zoo.peft_checks import check_peft

            check_peft(result, entry, base, model, batch, config)
        _leave(result, model, batch, clean, base, moving)
    except RankwiseError as error:
        result.status, result.note = "refused", f"{type(error).__name__}: {error}"
        return result
    return result.judge()


def _attach(
    result: Result, model: nn.Module, config: LoRAConfig, batch: Batch, frozen: list[Tensor], reached: dict[str, bool]
) -> None:
    """Inject, and see that nothing else changed: modes, keys, values, the output to the last bit.

    What the first forward warns of is compared with what the base's own output depends on: with the adapter filled, a
    router may choose other experts.
    """
    modules = dict(model.named_modules())
    for number, module in enumerate(modules.values()):
        module.training = number % 3 == 0
    modes = {name: module.training for name, module in modules.items()}
    before = state_of(model)
    report = rankwise.inject(model, config)
    result.adapted = len(report.adapted)
    flipped = [name for name, module in model.named_modules() if name in modes and module.training != modes[name]]
    differing = changed(before, {k: v for k, v in rankwise.base_state_dict(model).items() if isinstance(v, Tensor)})
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    extra = [name for name in trainable if not re.search(r"(^|\.)lora(_\w+)?\.", name)]
    faults = [
        f"{what} of {names[0]} ({len(names)})"
        for what, names in (("mode", flipped), ("weight", differing), ("not frozen", extra))
        if names
    ]
    result.checks["untouched"] = ", ".join(faults) or "ok"
    model.eval()
    with torch.no_grad(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result.checks["same at B = 0"] = said(not same_bits(run(model, batch, torch.float32), frozen), "differs")
    found = [re.match(r"The first forward reached (\d+) of", str(warning.message)) for warning in warned]
    warned = sum(int(match[1]) for match in found if match)
    # What is not called has no gradient; the other way round, an output may not depend on what was called.
    unreached = len(_unreached(adapter_tensors(model), reached))
    result.checks["warning"] = said(warned > unreached, f"{warned} said to be missed, {unreached} were")


def _widest(base: nn.Module, batch: Batch) -> torch.dtype:
    """float64 where the model has finite outputs and gradients in it."""
    cast(base, torch.float64)
    try:
        with torch.no_grad():
            outputs = run(base, batch, torch.float64)
        _backward(base, batch, torch.float64)
    except (RuntimeError, TypeError, ValueError):
        return torch.float32
    gradients = [parameter.grad for parameter in base.parameters() if parameter.grad is not None]
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in [*outputs, *gradients])
    return torch.float64 if finite else torch.float32


def _on_outputs(
    result: Result, entry: Entry, base: nn.Module, model: nn.Module, batch: Batch, dtype: torch.dtype
) -> set[str]:
    """Everything that compares outputs, in the widest type the model runs in.

    Returns the keys that the base itself changes in training mode.
    """
    reference = cast(entry.copy(base), dtype)
    cast(model, dtype)
    with torch.no_grad():
        clean, adapted = run(reference, batch, dtype), run(model, batch, dtype)
    effect = distance(clean, adapted)
    result.figures["effect"] = effect / max(distance(clean, [torch.zeros_like(t) for t in clean]), 1e-30)
    if not 0 < effect < float("inf"):
        result.checks["gradients"] = f"the adapter's effect on the outputs is {effect}"
        return set()
    before = state_of(model)
    merged = _merge(result, model, batch, adapted, effect)
    if merged:
        # The same function without adapters: what reaches which expert, too, is the same.
        reference.load_state_dict({key: merged.get(key, value) for key, value in reference.state_dict().items()})
        with torch.no_grad():
            rankwise.unmerge(model)
            again = run(model, batch, dtype)
        wrong = changed(before, state_of(model)) or not same_bits(again, adapted)
        result.checks["unmerge"] = said(bool(wrong), "not exact")
    moving = _train(result, reference, model, batch, dtype, adapted, CLOSE[dtype] * effect)
    model.load_state_dict(before)
    result.checks["gradients"] = _gradients(result, reference, model, batch, dtype)
    model.load_state_dict(before)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rankwise.save_adapter(model, folder)
        fresh = cast(entry.copy(base), dtype)
        rankwise.load_adapter(fresh, folder)
        # The first forward is watched, operation by operation: torch may take another way to the same numbers.
        first, second = run(fresh, batch, dtype), run(fresh, batch, dtype)
        far = distance(first, adapted) > CLOSE[dtype] * effect
        # A model that casts its own layers has other weights read from outside in another type.
        alike = _readers(fresh) == _readers(model)
        result.checks["file"] = said(far or (alike and not same_bits(second, adapted)), "differs after loading")
    return moving


def _merge(result: Result, model: nn.Module, batch: Batch, adapted: list[Tensor], effect: float) -> dict[str, Tensor]:
    """Merge and compare; return the merged weights, nothing where merging is refused."""
    try:
        rankwise.merge(model)
    except RankwiseError as error:
        result.checks["merge"] = f"- refused: {error}"
        return {}
    with torch.no_grad():
        difference = distance(run(model, batch, adapted[0].dtype), adapted) / effect
    result.figures["merge"] = difference
    result.checks["merge"] = said(not difference <= CLOSE[adapted[0].dtype], f"differs by {difference:.1e}")
    return state_of(model)


def _train(
    result: Result,
    reference: nn.Module,
    model: nn.Module,
    batch: Batch,
    dtype: torch.dtype,
    adapted: list[Tensor],
    tolerance: float,
) -> set[str]:
    """Compare training mode without noise with eval, where the base itself has the same output in both."""
    before = state_of(reference)
    with torch.no_grad():
        in_eval = run(reference, batch, dtype)
        with training_without_noise(reference):
            in_training = run(reference, batch, dtype)
        moving = set(changed(before, state_of(reference)))
        if moving or distance(in_training, in_eval) > tolerance:
            result.checks["train = eval"] = "- the base itself differs"
            return moving
        with training_without_noise(model):
            difference = distance(run(model, batch, dtype), adapted)
    result.checks["train = eval"] = said(not difference <= tolerance, f"differs by {difference:.1e}")
    return moving


def _readers(model: nn.Module) -> set[str]:
    """The layers whose adapters act where the weight is read."""
    return {path for path, (_, lora) in adapted_layers(model).items() if lora.has_reader}


def _gradients(result: Result, reference: nn.Module, model: nn.Module, batch: Batch, dtype: torch.dtype) -> str:
    """Every A and B has a gradient that isn't zero where the weight of the merged model has one."""
    reached = _reached(reference, batch, dtype)
    _backward(model, batch, dtype)
    tensors = adapter_tensors(model)
    unreached = _unreached(tensors, reached)
    result.unreached = len(unreached)
    missing = [
        name
        for name, pair in tensors.items()
        if name not in unreached
        and not all(p.grad is not None and bool(p.grad.any()) and bool(torch.isfinite(p.grad).all()) for p in pair)
    ]
    model.zero_grad(set_to_none=True)
    return said(bool(missing), f"none at {missing[0]} ({len(missing)} of {result.adapted})" if missing else "")


def _reached(base: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, bool]:
    """Return for every module whether the base's output depends on its own matrix, also one that is computed."""
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _backward(base, batch, dtype)
    reached: dict[str, bool] = {}
    for name, module in base.named_modules(remove_duplicate=False):
        computed = getattr(module, "parametrizations", None)
        own = [*module.parameters(recurse=False), *(computed.parameters() if computed is not None else ())]
        grads = [parameter.grad for parameter in own if parameter.ndim > 1]
        reached[name] = any(grad is not None and bool(grad.any()) for grad in grads)
    base.zero_grad(set_to_none=True)
    return reached


def _unreached(names: Iterable[str], reached: dict[str, bool]) -> set[str]:
    """Return the adapted weights that the output doesn't depend on; a parameter's name ends in its own."""
    return {name for name in names if not reached.get(name, reached.get(name.rpartition(".")[0], False))}


def _backward(model: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
    """Give every parameter that the outputs depend on a gradient.

    A model that recomputes its blocks in the backward pass gives none where only weights inside the blocks ask for it
    (torch's reentrant checkpoints, Reformer's reversible layers): as in training, its embeddings then ask too.
    """
    with training_without_noise(model):
        outputs = [tensor for tensor in run(model, batch, dtype) if tensor.requires_grad]
        if not outputs and hasattr(model, "get_input_embeddings"):
            hook = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
            outputs = [tensor for tensor in run(model, batch, dtype) if tensor.requires_grad]
            hook.remove()
        generator = torch.Generator().manual_seed(5)
        total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
        if isinstance(total, Tensor):
            total.backward()


def _leave(
    result: Result, model: nn.Module, batch: Batch, clean: list[Tensor], base: nn.Module, moving: set[str]
) -> None:
    """Eject: keys, weights, what was trainable, hooks and outputs are those of the base."""
    rankwise.eject(model)
    cast(model, torch.float32)
    faults = [f"weight of {key}" for key in changed(state_of(base), state_of(model)) if key not in moving]
    thawed = {name: p.requires_grad for name, p in model.named_parameters()}
    faults += [f"frozen {name}" for name, p in base.named_parameters() if thawed.get(name) != p.requires_grad]
    faults += [
        f"hooks of {name}"
        for (name, module), (_, original) in zip(model.named_modules(), base.named_modules(), strict=True)
        if _hooks(module) != _hooks(original) or module.__dict__.keys() != original.__dict__.keys()
    ]
    with torch.no_grad():
        faults += [] if moving or same_bits(run(model, batch, torch.float32), clean) else ["output"]
    result.checks["eject"] = f"{faults[0]} ({len(faults)})" if faults else "ok"


def _hooks(module: nn.Module) -> tuple[int, int]:
    return len(module._forward_hooks), len(module._forward_pre_hooks)
