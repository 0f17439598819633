"""Values of a file in place of an attached adapter's: the same function, and no new compilation."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from adapted_models import fill, mlp, outputs, theirs
from rankwise.adapter_files import load_adapter, save_adapter, swap_adapter
from rankwise.errors import AdapterError
from rankwise.lora import LoRAConfig, inject, merge, trainable_parameters
from rounding import alike

pytestmark = pytest.mark.usefixtures("compilable")


def adapted(factor=1.0, **settings):
    model = mlp()
    inject(model, LoRAConfig(**{"r": 4, "alpha": 6.0, **settings}))
    fill(trainable_parameters(model))
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.mul_(factor)
    return model


SETTINGS = {
    "the same": ({}, {}),
    "smaller r, other scale": ({}, {"r": 2, "alpha": 5.0}),
    "other scale": ({}, {"scaling": "alpha/sqrt(r)"}),
    "dora": ({"variant": "dora"}, {"variant": "dora"}),
    "whole": ({"modules_to_save": "down", "bias": "all"}, {"modules_to_save": "down", "bias": "all"}),
}


@pytest.mark.parametrize(("own", "new"), SETTINGS.values(), ids=SETTINGS)
def test_a_compiled_model_takes_up_new_values(own, new, tmp_path):
    other = adapted(2.0, **new)
    save_adapter(other, tmp_path)
    model, x = adapted(**own), torch.randn(5, 6)
    model(x)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    before = compiled(x)
    assert counter.frame_count == 1
    assert swap_adapter(model, tmp_path) == []
    torch.testing.assert_close(compiled(x), other(x))
    assert not torch.allclose(compiled(x), before, atol=1e-3)
    assert counter.frame_count == 1
    torch.testing.assert_close(outputs(model), outputs(other))
    again = mlp()
    load_adapter(again, save_adapter(model, tmp_path / "again"))
    torch.testing.assert_close(outputs(again), outputs(other))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrices = nn.Parameter(torch.arange(24.0).view(2, 3, 4).sin())

    def forward(self, x):
        return (x @ self.matrices.mT).sum(0)


def test_a_smaller_r_fills_up_each_matrix_of_a_stack(tmp_path):
    def stack(**settings):
        model = nn.Sequential(Stack())
        inject(model, LoRAConfig(target_modules="matrices", **settings))
        fill(trainable_parameters(model))
        return model

    other, model, x = stack(r=1, alpha=3.0), stack(r=3), torch.randn(5, 4)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    compiled(x)
    frames = counter.frame_count
    assert swap_adapter(model, save_adapter(other, tmp_path)) == []
    torch.testing.assert_close(compiled(x), other(x))
    assert counter.frame_count == frames


def test_a_file_of_pefts_without_recompiling_by_another_backend(tmp_path):
    wrapped = theirs(mlp(), r=3, target_modules="all-linear")
    wrapped.save_pretrained(str(tmp_path))
    model, x = adapted(), torch.randn(5, 6)
    model(x)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    swap_adapter(model, tmp_path)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(compiled(x), wrapped(x))


@pytest.mark.parametrize(
    ("own", "new", "message"),
    [
        ({}, {"target_modules": "block.up"}, 'adapts "block.down" and .* doesn\'t'),
        ({}, {"r": 5}, 'r = 5 at .*, and "default" r = 4'),
        ({}, {"variant": "dora"}, 'of variant "lora" and the file of variant "dora"'),
        ({}, {"bias": "all"}, 'has whole "block.down.bias" and "default" doesn\'t'),
        ({"slices": {"down": ["0/3"]}}, {}, '"default" is on slices'),
        ({"alpha": 0.0}, {}, "has scale 0"),
    ],
)
def test_what_is_refused(own, new, message, tmp_path):
    save_adapter(adapted(**new), tmp_path)
    model = adapted(**own)
    before = outputs(model)
    with pytest.raises(AdapterError, match=message):
        swap_adapter(model, tmp_path)
    assert alike(outputs(model), before)


def test_no_adapter_and_a_merged_one(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match='no adapter "x"'):
        swap_adapter(model, tmp_path, "x")
    merge(model)
    with pytest.raises(AdapterError, match="holds a merged adapter, whose values"):
        swap_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="no adapter"):
        swap_adapter(nn.Linear(2, 2), tmp_path)
