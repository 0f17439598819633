"""A model is freed with its last reference: no cycle keeps it in memory until Python looks for cycles."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # as any optimiser imports it, which leaves cycles of its own
from torch import Tensor, nn

from rankwise import LoRAConfig, eject, inject, load_adapter, merge, save_adapter
from rankwise.sweeps.run.run import run_sweep
from rankwise.train.events import Observers
from small_sweep import small_model, small_problem, small_run


class Counting(nn.Module):
    """Has numbers of its own, one of which each forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.depth, self.forwards = 2, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.second(torch.relu(self.first(x)))


class Tied(nn.Module):
    """Reads a layer's weight without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embedding(x.argmax(-1))) @ self.embedding.weight.t()


class Attending(nn.Module):
    """Has an adapted parameter that no layer is called for."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.layer = nn.MultiheadAttention(4, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.attention(x, x, x)[0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "nested": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4))),
    "one layer": lambda: nn.Linear(4, 4),
    "norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)),
    "counting": Counting,
    "tied": Tied,
    "attention": Attending,
}


def one_step(model: nn.Module) -> nn.Module:
    return steps(model, 1)


def steps(model: nn.Module, n: int) -> nn.Module:
    for _ in range(n):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, 0.1)
        model(torch.randn(6, 4)).square().mean().backward()
        optimiser.step()
    return model


def second(model: nn.Module) -> nn.Module:
    inject(model, LoRAConfig(r=1), "second")
    return one_step(model)


def ejected(model: nn.Module) -> nn.Module:
    eject(one_step(model))
    return model


def merged(model: nn.Module) -> nn.Module:
    merge(one_step(model))
    return model


ACTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "injected": lambda model: model,
    "in eval": lambda model: one_step(model).eval(),
    "2 steps": lambda model: steps(model, 2),
    "12 steps": lambda model: steps(model, 12),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(one_step(model))),
    "second adapter": second,
    "ejected": ejected,
    "merged": merged,
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", MODELS)
def test_an_adapted_model(kind: str, act: str) -> None:
    model = MODELS[kind]()
    inject(model, LoRAConfig(r=2))
    model = ACTS[act](model)
    modules = [weakref.ref(module) for module in model.modules()]
    assert len(modules) > 1 or act == "ejected"
    del model
    assert [module() for module in modules if module() is not None] == []


@pytest.mark.parametrize("kind", MODELS)
def test_a_loaded_adapter(kind: str, tmp_path: Path) -> None:
    saved, model = MODELS[kind](), MODELS[kind]()
    model.load_state_dict(saved.state_dict())
    inject(saved, LoRAConfig(r=2))
    save_adapter(saved, tmp_path / "adapter")
    load_adapter(model, tmp_path / "adapter")
    modules = [weakref.ref(module) for it in (saved, model) for module in it.modules()]
    del saved, model
    assert [module() for module in modules if module() is not None] == []


def test_the_model_of_a_sweep() -> None:
    model = small_model()
    run_sweep(model, [small_run("r1"), small_run("r2"), small_run("full")], small_problem(), Observers())
    modules = [weakref.ref(module) for module in model.modules()]
    del model
    assert [module() for module in modules if module() is not None] == []
