"""The hook: the equation, bits of the base, copies, types, and the base's own checkpoint."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from rankwise.errors import AdapterError
from rankwise.lora import (
    LoRAConfig,
    activate,
    adapter_tensors,
    count_parameters,
    disabled,
    inject,
    trainable_parameters,
)
from rankwise.lora.maths import lora_linear
from rounding import alike, exact

sizes = st.integers(1, 5)


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def trained(model, name="default"):
    """Give B values, as training would."""
    with torch.no_grad():
        for _, B in adapter_tensors(model, name).values():
            B.normal_(generator=torch.Generator().manual_seed(5))
    return model


def adapted(**settings):
    model = mlp()
    inject(model, LoRAConfig(**{"r": 2, **settings}))
    return trained(model)


@given(sizes, sizes, sizes)
def test_the_output_is_the_equation(r, d_in, d_out):
    layer = nn.Linear(d_in, d_out, bias=False).double()
    inject(layer, LoRAConfig(r=r, alpha=5.0))
    A, B = adapter_tensors(trained(layer))[""]
    x = torch.randn(2, 3, d_in, dtype=torch.float64)
    torch.testing.assert_close(layer(x), lora_linear(x, layer.weight, A, B, alpha=5.0))


alphas = st.sampled_from([32.0, 0.7, 0.0, -3.0])


@given(sizes, sizes, sizes, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]), alphas)
def test_with_b_zero_every_bit_is_the_bases(r, d_in, d_out, dtype, alpha):
    """Negative zero included: -0 + 0 is 0, so a careless sum would change it."""
    layer = nn.Linear(d_in, d_out).to(dtype)
    x = torch.randn(7, d_in, dtype=dtype)
    exact(layer, 0.5)
    exact(x, 0.5)
    with torch.no_grad():
        layer.weight[0].zero_()
        layer.bias[0] = -0.0
        x[0] = -0.0
        if d_in == 1:
            layer.bias = None
        before = layer(x)
        inject(layer, LoRAConfig(r=r, alpha=alpha))
        after = layer(x)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(before.view(integer), after.view(integer))


@pytest.mark.parametrize("alpha", [32.0, -3.0])
@pytest.mark.parametrize("r", [1, 2])
def test_a_negative_zero_of_the_base_survives(r, alpha):
    layer = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        layer.weight.fill_(-0.0)
        inject(layer, LoRAConfig(r=r, alpha=alpha, init="kaiming"))
        for sign in (1.0, -1.0):
            layer.lora.A["default"].fill_(sign)
            assert torch.signbit(layer(torch.ones(2, 1))).all()


def test_inputs_by_keyword():
    layer = nn.Linear(4, 2)
    inject(layer, LoRAConfig(r=2))
    x = torch.randn(3, 4)
    assert alike(trained(layer)(input=x), layer(x))


@pytest.mark.parametrize(
    ("base", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_types(base, kept):
    layer = nn.Linear(4, 2).to(base)
    inject(layer, LoRAConfig(r=2))
    assert {parameter.dtype for parameter in trainable_parameters(layer)} == {kept}
    out = trained(layer)(torch.randn(3, 4, dtype=base))
    assert out.dtype == base
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(layer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_activation_is_kept_in_float32(dtype):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48)).to(dtype)
    inject(model, LoRAConfig(r=2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(torch.randn(100, 32, dtype=dtype))
    assert kept
    assert not [t.shape for t in kept if t.dtype == torch.float32]


def test_under_autocast():
    torch.manual_seed(0)
    model = adapted()
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), rtol=0.1, atol=0.1)


def test_dropout_acts_on_the_adapters_input_in_training_only():
    layer = nn.Linear(50, 3)
    base = copy.deepcopy(layer)
    inject(layer, LoRAConfig(r=2, dropout=0.5))
    trained(layer)
    x = torch.randn(4, 50)
    A, B = adapter_tensors(layer)[""]
    torch.manual_seed(1)
    seen = layer(x)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(seen - base(x), dropped @ A.mT @ B.mT * 16.0)
    layer.eval()
    torch.testing.assert_close(layer(x) - base(x), x @ A.mT @ B.mT * 16.0)


def test_several_adapters_add_up():
    model, x = mlp(), torch.randn(3, 4)
    layer = model[0]
    base = layer(x).detach()
    inject(layer, LoRAConfig(r=1), "one")
    inject(layer, LoRAConfig(r=3, seed=1), "two")
    trained(layer, "one")
    trained(layer, "two")
    updates = []
    for name in ("one", "two"):
        activate(layer, name)
        updates.append(layer(x) - base)
    activate(layer, "one", "two")
    torch.testing.assert_close(layer(x) - base, updates[0] + updates[1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_a_and_b(copied):
    model, x = adapted(), torch.randn(3, 4)
    twin = copied(model)
    expected = model(x)
    assert alike(twin(x), expected)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.zero_()
    assert alike(twin(x), expected)
    with disabled(twin):
        assert alike(twin(x), model(x))


def test_a_whole_model_through_torch_save():
    model, x = adapted(), torch.randn(3, 4)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert alike(torch.load(buffer, weights_only=False)(x), model(x))


def test_the_bases_checkpoint_loads_strictly_and_leaves_the_adapter():
    base, model = mlp(), adapted()
    before = [parameter.clone() for parameter in trainable_parameters(model)]
    assert str(model.load_state_dict(base.state_dict())) == "<All keys matched successfully>"
    model.load_state_dict(base.state_dict(), assign=True)
    assert all(torch.equal(a, b) for a, b in zip(before, trainable_parameters(model), strict=True))
    with disabled(model):
        x = torch.randn(3, 4)
        assert alike(model(x), base(x))


def test_a_checkpoint_with_the_adapter_goes_round():
    model, other, x = adapted(), adapted(seed=1), torch.randn(3, 4)
    assert other.load_state_dict(model.state_dict()).missing_keys == []
    assert alike(other(x), model(x))


def test_half_a_pair_is_missing():
    model = adapted()
    state = model.state_dict()
    del state["0.lora.B.default"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*0.lora.B.default"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_functional_call_and_vmap_put_other_tensors_in_place():
    """The definition of a pack: vmap over stacked A and B."""
    models = [adapted(), adapted(seed=1), adapted(seed=2)]
    for other in models[1:]:
        other.load_state_dict(models[0].state_dict(), strict=False)
        for A, B in adapter_tensors(other).values():
            nn.init.normal_(A)
            nn.init.normal_(B)
    x = torch.randn(3, 4)
    names = [name for name, _ in models[0].named_parameters() if ".lora." in name]
    stacks = {name: torch.stack([model.get_parameter(name).detach() for model in models]) for name in names}
    out = torch.vmap(lambda tensors: functional_call(models[0], tensors, (x,)))(stacks)
    for k, model in enumerate(models):
        torch.testing.assert_close(out[k], model(x))


@pytest.mark.usefixtures("compilable")
def test_compiled_code_honours_the_flags():
    model, x = adapted(), torch.randn(3, 4)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert alike(compiled(x), plain(x))
    with disabled(model), disabled(plain):
        assert alike(compiled(x), plain(x))
    activate(model)
    activate(plain)
    assert alike(compiled(x), plain(x))


def test_the_fast_path_of_an_encoder_steps_aside():
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        before = encoder(x)
        inject(encoder, LoRAConfig(r=2))
        assert not torch.allclose(trained(encoder)(x), before)


def test_repr_shows_the_state():
    model = adapted()
    assert "adapters=['default'], active=['default']" in repr(model)
    with disabled(model):
        assert "disabled" in repr(model)


def test_counting():
    model = adapted()
    assert count_parameters(model) == 2 * (4 + 8) + 2 * (8 + 2) == sum(map(torch.numel, trainable_parameters(model)))
    with pytest.raises(AdapterError, match=r'no adapter "defualt"; it has "default"\. Did you mean "default"'):
        count_parameters(model, "defualt")
    with pytest.raises(AdapterError, match="it has none; call inject first"):
        adapter_tensors(mlp())
