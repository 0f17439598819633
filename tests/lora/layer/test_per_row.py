"""Each row of a batch through its own adapter: what each adapter gives alone."""

import copy
import re

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from adapted_models import bert, fill, llama, mlp
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, activate, by_row, disabled, inject, merge, trainable_parameters
from rounding import alike, exact


class Mixed(nn.Module):
    """An embedding, a convolution and linear layers; batch first."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1, groups=2)
        self.out = nn.Linear(6, 3)

    def forward(self, ids):
        return self.out(self.conv(self.tokens(ids).mT).mT)


def mixed():
    torch.manual_seed(0)
    return Mixed().eval()


IDS = torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
NAMES = ["b", None, "a", "b", "c"]
MODELS = {
    "mlp": (mlp, X, ["a", "b", "c"], {}),
    "mixed": (mixed, IDS, ["a", "b", "c"], {"target_modules": ["tokens", "conv", "out"]}),
    "llama": (llama, IDS, ["a", "b", "c"], {}),
    "bert": (bert, IDS, ["a", "b", "c"], {}),
    "dora": (mlp, X, ["a", "b", "c"], {"variant": "dora"}),
    "slices": (mlp, X, ["a", "b", "c"], {"slices": {"block.up": ["0/2", "1/2"]}}),
}


def adapted(make, names, settings):
    model = make()
    for place, name in enumerate(names):
        inject(model, LoRAConfig(r=place + 1, alpha=2.0 + place, **settings), name)
        fill(trainable_parameters(model, name))
        with torch.no_grad():
            for parameter in trainable_parameters(model, name):
                parameter.mul_(place + 1)
    return model


def run(model, x):
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, torch.Tensor) else found[0]


def one_by_one(model, x, names):
    rows = []
    for place, name in enumerate(names):
        activate(model, *([] if name is None else [name]))
        rows.append(run(model, x)[place])
    return torch.stack(rows)


@pytest.mark.parametrize("what", MODELS)
def test_every_row_is_as_with_its_adapter_alone(what):
    make, x, adapters, settings = MODELS[what]
    model = adapted(make, adapters, settings)
    wanted = one_by_one(model, x, NAMES)
    activate(model, "c")
    before = run(model, x)
    with by_row(model, NAMES, example=x):
        found = run(model, x)
        with disabled(model):
            assert alike(run(model, x), run(make(), x))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found[0], before[0], atol=1e-3)
    assert alike(run(model, x), before)


def test_adapters_of_several_variants_and_of_part_of_the_layers():
    model = mlp()
    settings = {"a": {"target_modules": "up"}, "b": {"variant": "dora"}, "c": {"slices": {"down": ["0/3"]}}}
    for name, own in settings.items():
        inject(model, LoRAConfig(r=2, **own), name)
        fill(trainable_parameters(model, name))
    wanted = one_by_one(model, X, NAMES)
    with by_row(model, NAMES):
        torch.testing.assert_close(run(model, X), wanted)


def test_a_row_without_an_adapter_keeps_the_bases_bits():
    base, x = mlp(), X.clone()
    exact(base)
    exact(x)
    model = adapted(lambda: copy.deepcopy(base), ["a"], {})
    wanted = run(base, x)
    with by_row(model, [None, "a", None, None, None]):
        found = run(model, x)
    assert torch.equal(found[[0, 2, 3, 4]], wanted[[0, 2, 3, 4]])
    assert not alike(found[1], wanted[1])
    with by_row(model, [None] * 5):
        assert torch.equal(run(model, x), wanted)


def test_rows_laid_flat():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x):
            return self.linear(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    torch.manual_seed(0)
    model = adapted(lambda: Flat().eval(), ["a", "b"], {})
    x, names = torch.randn(3, 4, 6), ["a", None, "b"]
    wanted = one_by_one(model, x, names)
    with by_row(model, names):
        torch.testing.assert_close(run(model, x), wanted)


def test_the_number_of_calls_does_not_grow_with_the_rows():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    model = adapted(mlp, ["a", "b"], {})
    counts = []
    for n_rows in (4, 64):
        with by_row(model, ["a", "b"] * (n_rows // 2)), Count() as count:
            run(model, torch.randn(n_rows, 6))
        counts.append(count.n)
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("compilable")
def test_other_rows_need_no_new_compilation():
    torch.manual_seed(0)
    x, model = torch.randn(5, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for place, name in enumerate(("a", "b")):
        inject(model, LoRAConfig(r=place + 1), name)
        with torch.no_grad():
            for parameter in trainable_parameters(model, name):
                parameter.normal_()
    counter, counts = CompileCounter(), []
    with torch.no_grad():
        model(x)
        compiled = torch.compile(model, backend=counter)
        for names in (["a", "b", "b", None, "a"], ["b", "b", "a", "a", None], [None, "a", "a", "b", "b"]):
            with by_row(model, names):
                torch.testing.assert_close(compiled(x), model(x))
            counts.append(counter.frame_count)
    # The first rows, and the first change of them, are compiled; after that none.
    assert counts[1] == counts[2]
    assert counts[0] > 0


class Turned(nn.Module):
    """Has the rows second inside."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1)


def test_a_model_whose_rows_come_second_is_found_with_an_example():
    torch.manual_seed(0)
    model = adapted(lambda: Turned().eval(), ["a", "b"], {})
    square, tall = torch.randn(4, 4, 6), torch.randn(4, 3, 6)
    with (
        pytest.raises(AdapterError, match="doesn't have the rows first"),
        by_row(model, ["a", "b"] * 2, example=square),
    ):
        pass
    message = r"shape \(3, 4, 6\); its first dimension must be the 4 rows"
    with pytest.raises(AdapterError, match=message), by_row(model, ["a", "b"] * 2):
        run(model, tall)
    assert model.linear.lora.by_row is None
    assert model.linear.lora.active == ("b",)


def test_what_is_refused():
    def refuse(model, message, names=("a",)):
        with pytest.raises(AdapterError, match=re.escape(message)), by_row(model, names):
            pass

    model = adapted(mlp, ["a"], {})
    refuse(model, 'no adapter "x"', ["x"])
    refuse(model, "got no names", [])
    refuse(model.train(), "in training mode")
    model.eval()
    merge(model)
    refuse(model, "holds a merged adapter")
    refuse(
        adapted(mlp, ["a"], {"target_modules": "up", "modules_to_save": "down"}), 'trains "block.down.weight" in full'
    )
    attention = adapted(lambda: nn.MultiheadAttention(4, 2).eval(), ["a"], {})
    refuse(attention, "is read without a call, once for all rows")


def test_numbers_that_change_inside_the_block_count_from_the_next_call_on():
    model = mlp()
    for name in "ab":
        inject(model, LoRAConfig(r=2), name)
        fill(trainable_parameters(model, name))
    with torch.no_grad(), by_row(model, ["a", "b", None, "b", "a"]):
        before = model(X)
        for p in trainable_parameters(model, "b"):
            p.mul_(1.5)
        inside = model(X)
        state = {key: torch.full_like(t, 0.1) if key.endswith(".a") else t for key, t in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        assigned = model(X)
    with torch.no_grad():
        for name, rows in (("a", [0, 4]), ("b", [1, 3])):
            activate(model, name)
            torch.testing.assert_close(assigned[rows], model(X)[rows])
        torch.testing.assert_close(inside[[1, 3]], assigned[[1, 3]])
    torch.testing.assert_close(inside[[0, 2, 4]], before[[0, 2, 4]])
    assert not alike(inside[[1, 3]], before[[1, 3]])
    assert not alike(assigned[[0, 4]], before[[0, 4]])
