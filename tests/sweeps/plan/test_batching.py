"""Full fine-tuning runs share a pack where a step is short, and train one after another where it is not."""

from dataclasses import replace

import pytest
from torch import nn

from rankwise.pack.member import Member
from rankwise.sweeps.plan.batching import apart, pays
from rankwise.sweeps.problem import Run
from rankwise.train.settings import Training


def whole_run(model: nn.Module, lr: float, method: str = "full") -> Run:
    names = tuple(name for name, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None)
    member = Member(name=f"{method}-{lr}", modules_to_save=names)
    return Run(member.name, method, "", method, member, Training(lr=lr, batch_size=32), "data", {})


def model_of(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


@pytest.mark.parametrize(("width", "expected"), [(16, True), (128, True), (1024, False), (2048, False)])
def test_a_short_step_is_shared(width: int, expected: bool) -> None:
    model = model_of(width)
    assert pays(model, whole_run(model, 1e-3)) is expected


def test_only_full_fine_tuning_is_cut_and_the_note_says_why() -> None:
    model = model_of(1024)
    full = [whole_run(model, lr) for lr in (1e-3, 1e-4, 1e-5)]
    head = [replace(run, method="head") for run in full]
    packs, notes = apart(model, [full, head, full[:1]])
    assert packs == [[full[0]], [full[1]], [full[2]], head, full[:1]]
    (note,) = notes
    assert note.startswith("The 3 runs of full fine-tuning train one after another: each has 1,053,700 weights")


def test_small_models_stay_together() -> None:
    model = model_of(16)
    pack = [whole_run(model, lr) for lr in (1e-3, 1e-4)]
    assert apart(model, [pack]) == ([pack], [])
