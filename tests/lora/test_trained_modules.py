"""Parameters that an adapter trains in full: its own while it is active, the base's otherwise."""

import copy
import pickle

import pytest
import torch
from torch import nn

from rankwise.errors import AdapterError, ConfigError, TargetError
from rankwise.lora import (
    LoRAConfig,
    activate,
    base_state_dict,
    disabled,
    eject,
    inject,
    merge,
    trainable_parameters,
    unmerge,
)
from rankwise.lora.trained_modules import replacement_tensors
from rounding import alike


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

    def forward(self, x):
        return self.head(self.norm(self.fc(x)).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def train(model, name="default"):
    """One large step on what the adapter trains."""
    parameters = trainable_parameters(model, name)
    loss = model(X).square().mean()
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.data -= 0.5 * gradient


def test_a_fresh_one_computes_as_the_base_and_trains_its_own_copy(net):
    before, state = net(X), copy.deepcopy(net.state_dict())
    report = inject(net, LoRAConfig(r=2, target_modules="fc", modules_to_save=["head"], bias="all"))
    assert alike(net(X), before)
    assert set(replacement_tensors(net, "default")) == {"fc.bias", "norm.bias", *(f"head.{key}" for key in net.head.state_dict() if "lora" not in key)}  # fmt: skip # noqa: E501
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    assert trained == {id(p) for p in trainable_parameters(net)}
    assert report.trainable_parameters == sum(p.numel() for p in trainable_parameters(net))
    assert "trained in full" in str(report)
    train(net)
    assert not alike(net(X), before)
    with disabled(net):
        assert alike(net(X), before)
    base = base_state_dict(net)
    assert list(base) == list(state)
    assert all(torch.equal(base[key], state[key]) for key in state)
    eject(net)
    assert alike(net(X), before)
    assert list(net.state_dict()) == list(state)
    assert not net.head[0]._forward_pre_hooks


def test_buffers_are_the_adapters_own(net):
    inject(net, LoRAConfig(r=1, target_modules="fc", modules_to_save="head"))
    mean = net.head[1].running_mean.clone()
    net.train()
    net(X)
    assert torch.equal(net.head[1].running_mean, mean)
    assert not torch.equal(replacement_tensors(net, "default")["head.1.running_mean"], mean)


def test_lora_only_is_the_biases_of_targets(net):
    inject(net, LoRAConfig(r=1, target_modules=["fc", "head.0"], bias="lora_only"))
    assert set(replacement_tensors(net, "default")) == {"fc.bias", "head.0.bias"}


def test_targets_inside_are_left_out(net):
    report = inject(net, LoRAConfig(r=1, modules_to_save="head"))
    assert [target.name for target in report.adapted] == ["fc"]
    assert [(out.name, out.reason) for out in report.left_out] == [("head.0", "trained in full")]
    eject(net)
    with pytest.raises(TargetError, match="modules_to_save takes in every target"):
        inject(net, LoRAConfig(target_modules="head.0", modules_to_save="head"))
    with pytest.raises(TargetError, match='No module matches modules_to_save "hat"'):
        inject(net, LoRAConfig(modules_to_save="hat"))
    with pytest.raises(ConfigError, match='bias "some" is not known'):
        LoRAConfig(bias="some")


def test_two_adapters_have_each_their_own(net):
    config = LoRAConfig(r=1, target_modules="fc", modules_to_save="head")
    inject(net, config, "one")
    train(net, "one")
    one = net(X)
    inject(net, config, "two")
    train(net, "two")
    train(net, "two")
    assert all(not p.requires_grad or "lora" in n for n, p in net.named_parameters())
    two = net(X)
    activate(net, "one")
    assert alike(net(X), one)
    with pytest.raises(AdapterError, match=r'"one" and "two" both train "head.0" in full'):
        activate(net, "one", "two")
    assert alike(net(X), one)
    activate(net, "two")
    assert alike(net(X), two)
    eject(net, "two")
    activate(net, "one")
    assert alike(net(X), one)


@pytest.mark.parametrize("keep_base", [True, False])
def test_merged(net, keep_base):
    state = copy.deepcopy(net.state_dict())
    inject(net, LoRAConfig(r=1, target_modules="fc", modules_to_save="head", bias="all"))
    train(net)
    expected = net(X)
    merge(net, keep_base=keep_base)
    torch.testing.assert_close(net(X), expected)
    if keep_base:
        assert all(torch.equal(base_state_dict(net)[key], state[key]) for key in state)
        unmerge(net)
        assert alike(net(X), expected)
        assert all(torch.equal(base_state_dict(net)[key], state[key]) for key in state)
    else:
        eject(net)
        torch.testing.assert_close(net(X), expected)


def test_copies_and_pickles_are_independent(net):
    inject(net, LoRAConfig(r=1, target_modules="fc", modules_to_save="head"))
    train(net)
    expected = net(X)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert alike(again(X), expected)
        train(again)
        assert not alike(again(X), expected)
        assert alike(net(X), expected)


def test_the_bases_checkpoint_loads_strictly(net):
    state = copy.deepcopy(net.state_dict())
    inject(net, LoRAConfig(r=1, target_modules="fc", modules_to_save="head"))
    train(net)
    expected = net(X)
    net.load_state_dict(state)
    assert alike(net(X), expected)


def test_the_output_layer_of_an_attention():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    before = layer(x)
    inject(layer, LoRAConfig(r=1, target_modules="linear1", bias="all", modules_to_save="self_attn"))
    torch.testing.assert_close(layer(x), before)
    for tensor in replacement_tensors(layer, "default").values():
        nn.init.normal_(tensor)
    expected, plain = layer(x), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    merge(layer, keep_base=False)
    eject(layer)
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(plain(x), expected)


def test_what_cannot_be_redirected_is_refused():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "rnn": nn.LSTM(2, 2)})
    before = list(model.state_dict())
    with pytest.raises(AdapterError, match=r'"rnn.weight_ih_l0" can\'t be trained in full: a LSTM reads it'):
        inject(model, LoRAConfig(target_modules="fc", modules_to_save="rnn"))
    assert list(model.state_dict()) == before
    assert model["fc"].weight.requires_grad


def test_a_failing_forward_leaves_the_bases_parameters(net):
    inject(net, LoRAConfig(r=1, target_modules="fc", modules_to_save="head"))
    with pytest.raises(RuntimeError):
        net.head(torch.ones(2, 2))
    assert "weight" not in net.head[0].__dict__


@pytest.mark.usefixtures("compilable")
def test_compiled_it_follows_the_flags():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(5, 4)
    inject(model, LoRAConfig(r=1, target_modules="0", modules_to_save="2", bias="all"))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    adapted = model(x)
    assert torch.allclose(compiled(x), adapted, rtol=0, atol=1e-5)
    activate(model)
    assert torch.allclose(compiled(x), model(x), rtol=0, atol=1e-5)
    assert not torch.allclose(adapted, model(x))
    activate(model, "default")
    assert torch.allclose(compiled(x), adapted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", [["2"], ["0"], ["0", "2"]])
def test_a_shared_parameter_is_merged_only_where_all_layers_get_the_same(saved):
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 4, bias=False))
    model[2].weight = model[0].weight
    before, x = model[0].weight.detach().clone(), torch.arange(4)
    inject(model, LoRAConfig(r=1, target_modules="1", modules_to_save=saved))
    if len(saved) == 2:
        merge(model)
        unmerge(model)
    with torch.no_grad():
        model.get_parameter(f"{saved[-1]}.lora_trained.own.default.weight").add_(1.0)
        adapted = model(x)
        with pytest.raises(AdapterError, match=r'"0\.weight" and "2\.weight" are one parameter'):
            merge(model)
        assert alike(model(x), adapted)
        assert torch.equal(model[0].weight, before)
        for name in saved:
            model.get_parameter(f"{name}.lora_trained.own.default.weight").copy_(before + 2.0)
        if len(saved) == 2:
            adapted = model(x)
            merge(model)
            torch.testing.assert_close(model(x), adapted)
            unmerge(model)
    assert torch.equal(model[0].weight, before)


class Apart(nn.Module):
    """Reads what a layer has without calling it; the layer of the second kind is called as well."""

    def __init__(self, called):
        super().__init__()
        self.inner = nn.Module()
        self.inner.fc = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)
        self.is_called = called

    def forward(self, x):
        y = nn.functional.linear(x, self.inner.fc.weight, self.inner.fc.bias)
        return self.out(y + self.inner.fc(x) if self.is_called else y)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["first forward", "example"])
@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": "inner.fc", "target_modules": "out"}, {"bias": "lora_only", "target_modules": ["fc", "out"]}],
)
def test_what_is_read_without_a_call_is_the_adapters(called, how, settings):
    torch.manual_seed(0)
    model, x = Apart(called).double(), torch.randn(3, 4).double()
    base = model(x)
    inject(model, LoRAConfig(r=2, **settings), example=x if how == "example" else None)
    torch.testing.assert_close(model(x), base)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model))
    again, out = copy.deepcopy(model), model(x)
    assert not torch.allclose(out, base)
    merge(model)
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(again(x), out)
    eject(again)
    assert alike(again(x), base)


def test_a_head_that_shares_its_weight_is_its_own_in_its_own_place_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    x, base = torch.randn(3, 4), copy.deepcopy(model)
    inject(model, LoRAConfig(r=2, target_modules="1", modules_to_save="2"))
    model(x)
    with torch.no_grad():
        model[2].lora_trained.own["default"].weight.zero_()
    torch.testing.assert_close(model(x), base[2].bias.expand(3, 4))
    torch.testing.assert_close(model[0](x), base[0](x))


def test_eject_of_two_merged_where_one_has_the_layer_whole_and_one_adapts_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inject(model, LoRAConfig(r=2, target_modules=["0"], modules_to_save=["1"]), "a")
    inject(model, LoRAConfig(r=2, target_modules=["1"]), "b")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in before:
                parameter.add_(torch.rand_like(parameter))
    activate(model, "a", "b")
    merge(model)
    eject(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
