"""What is checked on every model of the zoo: attach, train mode, gradients, merge, files, and that the base is untouched.

Outputs are compared in float64, where a fault stands out from rounding by ten orders of magnitude, and relative to what
the adapter changes; a model that computes in float32 inside can't be told apart as finely, so the limit is `CLOSE`.
"""

import copy
import tempfile
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import rankwise
from rankwise.errors import RankwiseError
from rankwise.lora import LoRAConfig, adapter_tensors
from zoo.entry import Entry, run
from zoo.kinds import select
from zoo.quiet import training_without_noise

CLOSE = 1e-5
"""Largest difference of outputs, as a share of what the adapter changes in them."""

COLUMNS = (
    "same at B = 0", "train = eval", "gradients", "merge", "unmerge", "file", "untouched", "eject",
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
    base, batch = entry.build(), entry.batch()
    model = copy.deepcopy(base)
    with torch.no_grad():
        clean = run(base, batch, torch.float32)
        # Torch takes products of weights that need no gradient in another order: freezing alone may change last bits.
        frozen = run(copy.deepcopy(base).requires_grad_(False), batch, torch.float32)
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
        _attach(result, model, config, batch, frozen)
        fill(model)
        dtype = _widest(base, batch)
        result.figures["float"] = 64.0 if dtype == torch.float64 else 32.0
        _on_outputs(result, base, model, batch, dtype)
        if with_peft:
            from zoo.peft_checks import check_peft

            check_peft(result, base, model, batch, config)
        _leave(result, model, batch, clean, base)
    except RankwiseError as error:
        result.status, result.note = "refused", f"{type(error).__name__}: {error}"
        return result
    return result.judge()


def _attach(result: Result, model: nn.Module, config: LoRAConfig, batch, frozen: list[Tensor]) -> None:
    """Inject, and see that nothing else changed: modes, keys, values, the output to the last bit."""
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
    extra = [name for name in trainable if ".lora." not in f".{name}"]
    faults = [
        f"{what} of {names[0]} ({len(names)})"
        for what, names in (("mode", flipped), ("weight", differing), ("not frozen", extra))
        if names
    ]
    result.checks["untouched"] = ", ".join(faults) or "ok"
    model.eval()
    with torch.no_grad():
        result.checks["same at B = 0"] = said(not same_bits(run(model, batch, torch.float32), frozen), "differs")


def _widest(base: nn.Module, batch) -> torch.dtype:
    """float64 where the model runs in it."""
    try:
        with torch.no_grad():
            run(copy.deepcopy(base).double(), batch, torch.float64)
    except (RuntimeError, TypeError, ValueError):
        return torch.float32
    return torch.float64


def _on_outputs(result: Result, base: nn.Module, model: nn.Module, batch, dtype: torch.dtype) -> None:
    """Everything that compares outputs, in the widest type the model runs in."""
    base = copy.deepcopy(base).to(dtype)
    model.to(dtype)
    with torch.no_grad():
        clean, adapted = run(base, batch, dtype), run(model, batch, dtype)
    effect = distance(clean, adapted)
    result.figures["effect"] = effect / max(distance(clean, [torch.zeros_like(t) for t in clean]), 1e-30)
    if not effect > 0:
        result.checks["gradients"] = "the adapter changes nothing"
        return
    tolerance = CLOSE * effect

    with torch.no_grad(), training_without_noise(base):
        base_in_training = run(base, batch, dtype)
    if distance(base_in_training, clean) > tolerance:
        result.checks["train = eval"] = "- the base itself differs"
    else:
        with torch.no_grad(), training_without_noise(model):
            difference = distance(run(model, batch, dtype), adapted)
        result.checks["train = eval"] = said(not difference <= tolerance, f"differs by {difference / effect:.1e}")

    result.checks["gradients"] = _gradients(result, base, model, batch, dtype)
    before = state_of(model)
    try:
        rankwise.merge(model)
        with torch.no_grad():
            difference = distance(run(model, batch, dtype), adapted)
        result.figures["merge"] = difference / effect
        result.checks["merge"] = said(not difference <= tolerance, f"differs by {difference / effect:.1e}")
        rankwise.unmerge(model)
        with torch.no_grad():
            again = run(model, batch, dtype)
        wrong = changed(before, state_of(model)) or not same_bits(again, adapted)
        result.checks["unmerge"] = said(bool(wrong), "not exact")
    except RankwiseError as error:
        result.checks["merge"] = f"refused: {error}"
    with tempfile.TemporaryDirectory() as folder:
        rankwise.save_adapter(model, folder)
        fresh = copy.deepcopy(base)
        rankwise.load_adapter(fresh, folder)
        with torch.no_grad():
            result.checks["file"] = said(not same_bits(run(fresh, batch, dtype), adapted), "differs after loading")


def _gradients(result: Result, base: nn.Module, model: nn.Module, batch, dtype: torch.dtype) -> str:
    """Every A and B has a gradient where the base's own weight has one, and one that isn't zero where that isn't."""
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _backward(base, batch, dtype)
    reached: dict[str, bool] = {}
    for name, module in base.named_modules(remove_duplicate=False):
        own = [parameter.grad for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
        reached[name] = any(grad is not None and bool(grad.any()) for grad in own)
    base.zero_grad(set_to_none=True)
    base.requires_grad_(False)
    _backward(model, batch, dtype)
    missing: list[str] = []
    for name, pair in adapter_tensors(model).items():
        owner = name
        while owner not in reached and "." in owner:
            owner = owner.rpartition(".")[0]
        if not reached.get(owner, False):
            result.unreached += 1
        elif not all(p.grad is not None and bool(p.grad.any()) and bool(torch.isfinite(p.grad).all()) for p in pair):
            missing.append(name)
    model.zero_grad(set_to_none=True)
    return said(bool(missing), f"none at {missing[0]} ({len(missing)} of {result.adapted})" if missing else "")


def _backward(model: nn.Module, batch, dtype: torch.dtype) -> None:
    with training_without_noise(model):
        outputs = run(model, batch, dtype)
        generator = torch.Generator().manual_seed(5)
        total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs if t.requires_grad)
        if isinstance(total, Tensor):
            total.backward()


def _leave(result: Result, model: nn.Module, batch, clean: list[Tensor], base: nn.Module) -> None:
    """Eject: keys, weights, what was trainable, hooks and outputs are those of the base."""
    rankwise.eject(model)
    model.to(torch.float32)
    faults = [f"weight of {key}" for key in changed(state_of(base), state_of(model))]
    thawed = {name: p.requires_grad for name, p in model.named_parameters()}
    faults += [f"frozen {name}" for name, p in base.named_parameters() if thawed.get(name) != p.requires_grad]
    faults += [
        f"hooks of {name}"
        for (name, module), (_, original) in zip(model.named_modules(), base.named_modules(), strict=True)
        if _hooks(module) != _hooks(original) or module.__dict__.keys() != original.__dict__.keys()
    ]
    with torch.no_grad():
        faults += [] if same_bits(run(model, batch, torch.float32), clean) else ["output"]
    result.checks["eject"] = f"{faults[0]} ({len(faults)})" if faults else "ok"


def _hooks(module: nn.Module) -> tuple[int, int]:
    return len(module._forward_hooks), len(module._forward_pre_hooks)
