"""Another thread never gets outputs of a model that this one has changed for itself."""

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import rankwise
from rankwise.errors import AdapterError
from rankwise.lora.checks.threads import held_by_thread
from rounding import alike


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    for seed, name in enumerate("ab"):
        rankwise.inject(model, rankwise.LoRAConfig(r=1, seed=seed), name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora." in name:
                parameter.normal_()
    return model.requires_grad_(False)


def in_another_thread(function: Callable[[], object]) -> list[str]:
    """What it raised there."""
    raised: list[str] = []

    def run() -> None:
        try:
            function()
        except AdapterError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


BLOCKS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "by_row": lambda model: rankwise.by_row(model, ["a", None]),
    "disabled": rankwise.disabled,
    "a sweep": lambda model: held_by_thread(model, "a sweep"),
}
USES: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda model: model(torch.ones(2, 4)),
    "activate": lambda model: rankwise.activate(model, "a"),
    "inject": lambda model: rankwise.inject(model, rankwise.LoRAConfig(r=1), "c"),
    "eject": rankwise.eject,
    "merge": rankwise.merge,
    **{f"block {name}": lambda model, block=block: block(model).__enter__() for name, block in BLOCKS.items()},
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("use", USES)
def test_what_another_thread_does_is_refused(model: nn.Module, block: str, use: str) -> None:
    x = torch.ones(2, 4)
    before = model(x)
    with BLOCKS[block](model):
        inside = model(x)
        (message,) = in_another_thread(lambda: USES[use](model))
        assert f"Another thread is using this Sequential inside {block}" in message
        assert alike(model(x), inside)
    assert alike(model(x), before)
    assert not in_another_thread(lambda: model(x))


def test_one_thread_may_nest_blocks(model: nn.Module) -> None:
    with rankwise.disabled(model), rankwise.by_row(model, ["a", "b"]), rankwise.disabled(model):
        model(torch.ones(2, 4))
    assert not in_another_thread(lambda: model(torch.ones(2, 4)))


def test_copies_made_inside_a_block_are_free(model: nn.Module) -> None:
    with rankwise.disabled(model):
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in (copied, pickled):
            assert not in_another_thread(lambda other=other: other(torch.ones(2, 4)))


def test_an_error_frees_the_model(model: nn.Module) -> None:
    with pytest.raises(AdapterError, match="no adapter"), rankwise.by_row(model, ["zzz"]):
        pass
    with pytest.raises(RuntimeError), rankwise.disabled(model):
        raise RuntimeError
    assert not in_another_thread(lambda: model(torch.ones(2, 4)))
