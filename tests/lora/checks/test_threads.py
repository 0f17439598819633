"""Another thread never gets outputs of a model that this one has changed for itself."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import rankwise
from rankwise.errors import AdapterError
from rankwise.lora.adapter import LoRA
from rankwise.lora.checks.threads import has_hooks, held_by_thread
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


class Waits(nn.Module):
    """Two layers, between which another thread can do something."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.waits = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.waits:
            self.reached.set()
            self.go_on.wait(5)
        return self.second(h)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_forward_under_way_when_a_block_begins_is_refused(block: str) -> None:
    model = Waits().eval()
    for seed, name in enumerate("ab"):
        rankwise.inject(model, rankwise.LoRAConfig(r=1, seed=seed), name)
    model.waits = True
    raised: list[list[str]] = []
    thread = threading.Thread(target=lambda: raised.append(in_another_thread(lambda: model(torch.ones(2, 4)))))
    thread.start()
    model.reached.wait(5)
    with BLOCKS[block](model):
        model.go_on.set()
        thread.join()
    assert f"inside {block}" in raised[0][0]


@pytest.mark.parametrize("block", BLOCKS)
def test_parts_of_a_held_model_are_held(model: nn.Module, block: str) -> None:
    with BLOCKS[block](model):
        for use in (lambda: model[0](torch.ones(2, 4)), lambda: rankwise.disabled(model[0]).__enter__()):
            (message,) = in_another_thread(use)
            assert f"inside {block}" in message
    with BLOCKS[block](model[0]):
        (message,) = in_another_thread(lambda: rankwise.activate(model, "a"))
        assert f"inside {block}" in message


def test_tasks_of_one_thread_are_kept_apart(model: nn.Module) -> None:
    async def one(name: str) -> None:
        with rankwise.by_row(model, [name, name]):
            await asyncio.sleep(0)
            await asyncio.gather(within())

    async def within() -> None:
        """A task that the holder has started."""
        model(torch.ones(2, 4))

    async def both() -> list[BaseException | None]:
        return await asyncio.gather(one("a"), one("b"), return_exceptions=True)

    first, second = asyncio.run(both())
    assert first is None
    assert isinstance(second, AdapterError)


def test_a_block_left_before_one_that_was_entered_later_is_an_error(model: nn.Module) -> None:
    first, second = rankwise.disabled(model), rankwise.disabled(model)
    first.__enter__()
    second.__enter__()
    with pytest.raises(AdapterError, match="Leave blocks in the reverse order"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not in_another_thread(lambda: model(torch.ones(2, 4)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_modules_take_no_part(model: nn.Module) -> None:
    model.append(torch.jit.trace(nn.Tanh(), torch.ones(2, 2)))
    with rankwise.disabled(model):
        assert in_another_thread(lambda: model(torch.ones(2, 4)))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    **{name: use for name, use in USES.items() if name in ("activate", "inject", "eject", "merge")},
    "rename": lambda model: rankwise.rename(model, "a", "c"),
    "eject one": lambda model: rankwise.eject(model, "a"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_adapters_are_not_changed_while_another_thread_is_in_a_forward_pass(change: str) -> None:
    model = Waits().eval()
    for seed, name in enumerate("ab"):
        rankwise.inject(model, rankwise.LoRAConfig(r=1, seed=seed), name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora." in name:
                parameter.fill_(0.5 if name.endswith("a") else 0.25)
    x, found = torch.ones(2, 4), list[Tensor]()
    before = model(x)
    model.waits = True
    thread = threading.Thread(target=lambda: found.append(model(x)))
    thread.start()
    model.reached.wait(5)
    with pytest.raises(AdapterError, match="Another thread is in a forward pass of this Waits"):
        CHANGES[change](model)
    model.go_on.set()
    thread.join()
    assert alike(found[0], before)
    model.waits = False
    CHANGES[change](model)
    model(x)


def test_a_forward_pass_that_begins_while_adapters_change_is_refused(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[str] = []
    switch = LoRA.switch

    def slowly(self: LoRA, names: tuple[str, ...]) -> None:
        switch(self, names)
        raised.extend(in_another_thread(lambda: model(torch.ones(2, 4))))

    monkeypatch.setattr(LoRA, "switch", slowly)
    rankwise.activate(model, "a")
    assert len(raised) == 2
    assert all("inside activate" in message for message in raised)
    assert not in_another_thread(lambda: model(torch.ones(2, 4)))


def test_a_guard_is_no_hook_that_computes() -> None:
    layer = nn.Linear(2, 2)
    with held_by_thread(layer, "a sweep"):
        assert layer._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        assert not has_hooks(layer)
        for register in (
            layer.register_forward_hook,
            layer.register_forward_pre_hook,
            layer.register_full_backward_hook,
            layer.register_full_backward_pre_hook,
        ):
            handle = register(lambda *given: None)
            assert has_hooks(layer)
            handle.remove()
        assert not has_hooks(layer)
