"""The table of layers: dimensions, the layout of delta, and what is refused."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.lora.layer_types import LAYER_TYPES, layer_type_of, obstacle

USABLE = [nn.Linear(3, 5), Conv1D(5, 3)]


@pytest.mark.parametrize("layer", USABLE, ids=lambda layer: type(layer).__name__)
def test_delta_in_the_weight_is_the_map_it_stands_for(layer):
    row = layer_type_of(layer)
    assert row.dims(layer) == (3, 5)
    x, delta = torch.randn(2, 3), torch.randn(5, 3)
    before = layer(x)
    with torch.no_grad():
        layer.weight += row.delta_as_weight(layer, delta)
    torch.testing.assert_close(layer(x), before + x @ delta.mT)


def test_a_subclass_has_the_row_of_its_ancestor():
    class Mine(nn.Linear):
        pass

    assert layer_type_of(Mine(2, 2)) is LAYER_TYPES["torch.nn.modules.linear.Linear"]
    assert obstacle(Mine(2, 2)) == ""


def test_every_row_names_a_class_that_exists():
    for name in LAYER_TYPES:
        module, _, cls = name.rpartition(".")
        assert isinstance(getattr(__import__(module, fromlist=[cls]), cls), type)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ReLU(), "only Linear and Conv1D layers can be adapted"),
        (nn.MultiheadAttention(4, 2).out_proj, "never calls it"),
        (nn.LazyLinear(3), "run one first"),
    ],
)
def test_obstacles(layer, reason):
    assert reason in obstacle(layer)


def test_a_weight_that_is_no_floating_point_matrix():
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert obstacle(layer) == "its weight is of type int8; a floating-point weight is needed"
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 2)
    assert "shape (2, 0)" in obstacle(empty)


def test_a_lazy_layer_is_usable_after_its_first_forward():
    layer = nn.LazyLinear(3)
    layer(torch.ones(1, 2))
    assert layer_type_of(layer).dims(layer) == (2, 3)
