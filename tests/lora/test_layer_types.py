"""The table of layers: every type computes the function its merged weight would, alone and under vmap."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from layers import any_layer, convolutions
from rankwise.errors import AdapterError, TargetError
from rankwise.lora import (
    LayerType,
    LoRAConfig,
    adapter_tensors,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    register_layer_type,
    unmerge,
)
from rankwise.lora.layer_types import LAYER_TYPES, layer_type_of, obstacle
from rounding import alike, exact

ranks = st.integers(1, 4)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def adapted(layer, **settings):
    """Adapt a layer, with values in both A and B, as after training."""
    inject(layer, LoRAConfig(**{"r": 2, "target_modules": lambda name, module: module is layer, **settings}))
    with torch.no_grad():
        for tensor in adapter_tensors(layer)[""]:
            tensor.normal_(generator=torch.Generator().manual_seed(5))
    return layer


def wide(x):
    return x.double() if x.is_floating_point() else x


@given(any_layer, ranks)
def test_merged_equals_unmerged(drawn, r):
    layer, x = drawn[0].double(), wide(drawn[1])
    before = copy.deepcopy(layer.state_dict())
    base = layer(x)
    adapted(layer, r=r)
    unmerged = layer(x)
    assert not alike(unmerged, base)
    merge(layer)
    torch.testing.assert_close(layer(x), unmerged, rtol=0, atol=1e-10)
    unmerge(layer)
    assert torch.equal(layer.weight, before["weight"])
    assert alike(layer(x), unmerged)
    with disabled(layer):
        assert alike(layer(x), base)
    eject(layer)
    assert alike(layer(x), base)
    assert list(layer.state_dict()) == list(before)


@given(any_layer, ranks, st.sampled_from([32.0, 0.7, -3.0]))
def test_before_training_every_bit_is_the_bases(drawn, r, alpha):
    layer, x = drawn
    exact(layer)
    if x.is_floating_point():
        exact(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[0] = -0.0
        before = layer(x)
        inject(layer, LoRAConfig(r=r, alpha=alpha, target_modules=lambda *_: True))
        after = layer(x)
    assert torch.equal(before.view(torch.int32), after.view(torch.int32))


@given(any_layer, ranks, st.integers(1, 3))
def test_vmap_over_adapters_is_a_loop_over_them(drawn, r, k):
    layer, row = drawn[0].double(), layer_type_of(drawn[0])
    xs = torch.stack([wide(drawn[1])] * k)
    d_in, d_out = row.dims(layer)
    As = torch.randn(k, r, d_in, dtype=torch.float64, requires_grad=True)
    Bs = torch.randn(k, d_out, r, dtype=torch.float64, requires_grad=True)
    together = torch.vmap(lambda x, A, B: row.update(layer, x, A, B))(xs, As, Bs)
    alone = torch.stack([row.update(layer, x, A, B) for x, A, B in zip(xs, As, Bs, strict=True)])
    torch.testing.assert_close(together, alone)
    weights = torch.randn_like(alone)
    for one, other in zip(
        torch.autograd.grad((together * weights).sum(), (As, Bs)),
        torch.autograd.grad((alone * weights).sum(), (As, Bs)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@given(any_layer, ranks)
def test_every_a_and_b_gets_the_gradient_of_the_merged_weight(drawn, r):
    """The chain rule through W + s B A, layer by layer, with nothing of the update's own code."""
    layer, x = drawn[0].double(), wide(drawn[1])
    if getattr(layer, "padding_idx", None) is not None:
        return  # there the two differ on purpose: see below
    adapted(layer, r=r, alpha=3.0)
    A, B = adapter_tensors(layer)[""]
    out = layer(x)
    weights = torch.randn_like(out)
    own = torch.autograd.grad((out * weights).sum(), (A, B))
    delta = layer_type_of(layer).delta(layer, A, B) * 3.0 / r
    bare = copy.deepcopy(layer)
    eject(bare)
    merged = torch.func.functional_call(bare, {"weight": layer.weight + delta}, (x,))
    for one, other in zip(own, torch.autograd.grad((merged * weights).sum(), (A, B)), strict=True):
        torch.testing.assert_close(one, other)


@given(any_layer, ranks)
def test_counting_and_copies(drawn, r):
    layer, x = drawn
    adapted(layer, r=r)
    d_in, d_out = layer_type_of(layer).dims(layer)
    assert count_parameters(layer) == r * (d_in + d_out)
    assert alike(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert alike(copy.deepcopy(layer)(x), layer(x))


# Convolutions


def test_a_depthwise_layer_costs_a_kernel_and_the_channels():
    layer = adapted(nn.Conv2d(64, 64, 3, groups=64), r=2)
    assert count_parameters(layer) == 2 * (9 + 64)


@given(convolutions())
def test_an_adapter_that_reads_all_channels_of_a_grouped_layer(drawn):
    """PEFT's form; it is no grouped convolution, so it runs, and merging refuses."""
    layer, x = drawn
    if layer.groups == 1 or layer.groups == layer.in_channels:
        return
    adapted(layer)
    r, kernel = 2 * layer.groups, layer.kernel_size
    A, B = torch.randn(r, layer.in_channels, *kernel), torch.randn(layer.out_channels, 2)
    layer.lora.A["default"] = nn.Parameter(A.flatten(1))
    layer.lora.B["default"] = nn.Parameter(B)
    out = layer(x)
    with disabled(layer):
        base = layer(x)
    merged = copy.deepcopy(layer)
    eject(merged)
    # Ungrouped, the same function has a weight: B's rows of a group see only that group's part of r.
    rows = [b @ a for a, b in zip(A.flatten(1).chunk(layer.groups), B.chunk(layer.groups), strict=True)]
    full = type(layer)(
        layer.in_channels, layer.out_channels, kernel, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode,
    )  # fmt: skip
    with torch.no_grad():
        full.weight.copy_(torch.cat(rows).view_as(full.weight))
    torch.testing.assert_close(out - base, full(x) * 16.0, rtol=1e-4, atol=1e-3)
    with pytest.raises(AdapterError, match=r"reads all \d channels"):
        merge(layer)


def test_the_output_size_of_a_transposed_convolution():
    layer, x = nn.ConvTranspose2d(2, 3, 3, stride=2), torch.randn(1, 2, 4, 4)
    adapted(layer)
    for size in ([9, 9], [10, 9]):
        unmerged = layer(x, output_size=size)
        assert list(unmerged.shape[2:]) == size
        assert alike(layer(output_size=size, input=x), unmerged)
        assert alike(layer(x, size), unmerged)
        merge(layer)
        torch.testing.assert_close(layer(x, output_size=size), unmerged)
        unmerge(layer)


def test_dropout_acts_on_the_input_of_a_convolution():
    layer, x = nn.Conv1d(2, 2, 3, bias=False), torch.randn(1, 2, 9)
    adapted(layer, dropout=0.5)
    torch.manual_seed(1)
    seen = layer(x)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    A, B = adapter_tensors(layer)[""]
    expected = layer_type_of(layer).update(layer, dropped, A, B) * 16.0
    with disabled(layer):
        torch.testing.assert_close(seen - layer(x), expected)


# Embeddings


def test_the_padding_index_learns_nothing():
    layer = nn.Embedding(5, 3, padding_idx=1)
    inject(layer, LoRAConfig(r=2, target_modules=lambda *_: True))
    A, B = adapter_tensors(layer)[""]
    layer(torch.tensor([[0, 1, 1, 4]])).sum().backward()
    assert A.grad[:, 1].abs().sum() == 0
    assert (A.grad.abs().sum(0) > 0).tolist() == [True, False, False, False, True]
    layer.zero_grad()
    torch.vmap(lambda A, B: layer_type_of(layer).update(layer, torch.tensor([0, 1]), A, B))(
        A[None], B[None]
    ).sum().backward()
    assert A.grad[:, 1].abs().sum() == 0


def test_what_an_embedding_never_saw_stays_the_bases():
    layer = nn.Embedding(5, 3)
    before = layer.weight.clone()
    inject(layer, LoRAConfig(r=2, dropout=0.5, target_modules=lambda *_: True))
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([0, 3])).square().sum().backward()
        optimizer.step()
    changed = (layer(torch.arange(5)) != before).any(1)
    assert changed.tolist() == [True, False, False, True, False]


def test_an_embedding_of_higher_rank_starts_alike():
    low, high = (nn.Embedding(5, 3) for _ in range(2))
    for layer, r in ((low, 2), (high, 4)):
        inject(layer, LoRAConfig(r=r, target_modules=lambda *_: True))
    assert torch.equal(adapter_tensors(high)[""][1][:, :2], adapter_tensors(low)[""][1])


def test_max_norm_is_refused():
    with pytest.raises(TargetError, match=r'"0" \(Embedding\) can\'t be adapted: max_norm = 1.0 makes every forward'):
        inject(nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)), LoRAConfig(target_modules="0"))


# The table


class Outer(nn.Module):
    """A layer of someone's own: y_ij = sum_k W_ijk x_k."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, x):
        return torch.einsum("ijk,...k->...ij", self.weight, x)


OUTER = LayerType(
    "Outer",
    dims=lambda layer: (4, 6),
    update=lambda layer, x, A, B: (x @ A.mT @ B.mT).unflatten(-1, (2, 3)),
    delta=lambda layer, A, B: (B @ A).view(2, 3, 4),
)


def test_a_layer_of_the_users_own(monkeypatch):
    monkeypatch.setattr("rankwise.lora.layer_types.LAYER_TYPES", dict(LAYER_TYPES))
    assert "register_layer_type" in obstacle(Outer())
    register_layer_type(Outer, OUTER)
    layer, x = Outer(), torch.randn(5, 4)
    adapted(layer)
    unmerged = layer(x)
    merge(layer)
    torch.testing.assert_close(layer(x), unmerged)
    register_layer_type(Outer, replace(OUTER, name="Other"))
    assert layer_type_of(layer).name == "Other"


def test_a_subclass_has_the_row_of_its_ancestor():
    class Mine(nn.Linear):
        pass

    assert layer_type_of(Mine(2, 2)) is LAYER_TYPES["torch.nn.modules.linear.Linear"]
    assert obstacle(Mine(2, 2)) == ""


def test_every_row_names_a_class_that_exists():
    for name in LAYER_TYPES:
        module, _, cls = name.rpartition(".")
        if not module.startswith("test_"):
            assert isinstance(getattr(__import__(module, fromlist=[cls]), cls), type)


def test_all_linear_takes_the_linear_rows_only():
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2), Conv1D(2, 2), nn.Conv1d(2, 2, 1), nn.LayerNorm(2))
    report = inject(model, LoRAConfig(r=1))
    assert [target.name for target in report.adapted] == ["1", "2"]
    assert [(out.name, out.reason) for out in report.left_out] == [("0", "by name only"), ("3", "by name only")]
    assert str(report).splitlines()[-1] == (
        'to adapt what is taken by name only: target_modules=["all-linear", "0", ...]'
    )
    eject(model)
    report = inject(model, LoRAConfig(r=1, target_modules=["all-linear", "0"]))
    assert [target.name for target in report.adapted] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ReLU(), "not in LAYER_TYPES; register_layer_type adds it"),
        (nn.LazyLinear(3), "run one first"),
        (nn.LazyConv2d(3, 3), "run one first"),
        (nn.Conv1d(2, 2, 1, dtype=torch.complex64), "of type complex64; a floating-point"),
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
