"""Weights that are read without calling their layer: attention, RNNs, experts, layers with their own forward."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.errors import AdapterError, TargetError
from rankwise.lora import (
    LoRAConfig,
    adapter_tensors,
    base_state_dict,
    count_parameters,
    disabled,
    eject,
    inject,
    merge,
    unmerge,
)
from rankwise.lora.adapter import loras_in
from rounding import alike


class Scaled(nn.Embedding):
    """As transformers scales token embeddings: its forward is more than its row."""

    def forward(self, ids):
        return super().forward(ids) * 3.0


class Standardised(nn.Conv1d):
    """As timm standardises kernels: the weight that acts is a function of the parameter."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv1d(x, weight, self.bias)


class Reads(nn.Module):
    """As timm's BEiT: a Linear whose weight the owner reads and never calls."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 6)

    def forward(self, x):
        return nn.functional.linear(x, self.qkv.weight, self.qkv.bias)


class Experts(nn.Module):
    """As transformers keeps the experts of a mixture: stacks of matrices, (experts, out, in) or (experts, in, out)."""

    def __init__(self, transposed=False):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 5))
        self.is_transposed = transposed
        if transposed:
            self.up.data, self.down.data = self.up.data.mT.contiguous(), self.down.data.mT.contiguous()

    def forward(self, x):
        up, down = (self.up, self.down) if self.is_transposed else (self.up.mT, self.down.mT)
        return ((x @ up).relu() @ down).sum(0)


class Listed(nn.Module):
    """Parameters in a container, which is never called."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 4)])

    def forward(self, x):
        return x @ self.matrices[0] @ self.matrices[1]


def attend(model, x):
    return model(x, x[:, :2], x[:, :2], need_weights=True)[0]


def attend_apart(model, x):
    return model(x, x[..., :3], x[..., :2])[0]


def first(model, x):
    return model(x)[0]


def plain(model, x):
    return model(x)


ATTENTIONS = {
    "attention",
    "attention, add_bias_kv",
    "attention, kdim and vdim",
    "in_proj",
    "out_proj",
    "encoder",
    "decoder",
}
WITHOUT_VMAP = {"lstm", "gru", "rnn, one matrix", "lstm cell"}
"""torch has no batching rule for its RNNs."""

X = torch.randn(2, 3, 4, dtype=torch.float64)
IDS = torch.tensor([[1, 2, 0]])

MODELS = {
    "attention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), attend, X, "all-linear"),
    "attention, kdim and vdim": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True), attend_apart, X, "all-linear"
    ),
    "in_proj": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), attend, X, "in_proj_weight"),
    "out_proj": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), attend, X, "out_proj"),
    "attention, add_bias_kv": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True), attend, X,
        "all-linear",
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), plain, X, "all-linear"),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda model, x: model(x, x[:, :2]), X, ["self_attn", "multihead_attn", "linear1"],
    ),
    "lstm": (
        lambda: nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2, batch_first=True), first, X,
        lambda name, module: isinstance(module, nn.LSTM),
    ),
    "gru": (lambda: nn.Sequential(nn.GRU(4, 3)), lambda model, x: model(x)[0], X, "0"),
    "rnn, one matrix": (lambda: nn.RNN(4, 3), first, X, "weight_hh_l0"),
    "lstm cell": (
        lambda: nn.LSTMCell(4, 3), lambda model, x: model(x[0], (x[0, :, :3], x[1, :, :3]))[0], X, "weight_*"
    ),
    "experts": (Experts, plain, X[:1], ["up", "down"]),
    "experts, transposed": (lambda: Experts(True), plain, X[:1], "up"),
    "a list": (Listed, plain, X, "re:matrices[.]."),
    "scaled embedding": (lambda: Scaled(4, 3), plain, IDS, lambda *_: True),
    "standardised convolution": (lambda: nn.Sequential(Standardised(3, 2, 2)), plain, X, "0"),
}  # fmt: skip
"""Name -> how it is made, how it is run, its input, its targets."""


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0]().double().requires_grad_(False)


def assert_base(name, out, base):
    """Bit for bit; but torch computes an attention without hooks by another route when nothing needs a gradient."""
    torch.testing.assert_close(out, base, rtol=0, atol=1e-14 if name in ATTENTIONS else 0)


def run(name, model):
    return MODELS[name][1](model, MODELS[name][2])


def adapted(name, **settings):
    model = made(name)
    report = inject(model, LoRAConfig(**{"r": 2, "target_modules": MODELS[name][3], **settings}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for pair in adapter_tensors(model).values():
            for tensor in pair:
                tensor.normal_(std=0.3, generator=generator)
    return model, report


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_adapter_acts_as_its_merged_weight_would(name, training):
    model = made(name).train(training)
    state, modes = copy.deepcopy(model.state_dict()), {n: m.training for n, m in model.named_modules()}
    with torch.no_grad():
        base = run(name, model)
    inject(model, LoRAConfig(r=2, target_modules=MODELS[name][3]))
    with torch.no_grad():
        assert_base(name, run(name, model), base)
    eject(model)
    assert list(model.state_dict()) == list(state)

    model, _ = adapted(name)
    model.train(training)
    out = run(name, model)
    assert not torch.allclose(out, base)
    with disabled(model), torch.no_grad():
        assert_base(name, run(name, model), base)
    merge(model)
    torch.testing.assert_close(run(name, model), out, rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, state[key]) for key, tensor in base_state_dict(model).items())
    assert list(base_state_dict(model)) == list(state)
    unmerge(model)
    assert alike(run(name, model), out)
    eject(model)
    with torch.no_grad():
        assert alike(run(name, model), base)
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_every_a_and_b_gets_a_gradient_and_the_base_none(name):
    model, report = adapted(name)
    assert report.trainable_parameters == count_parameters(model)
    run(name, model).square().sum().backward()
    for parameter in model.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == parameter.requires_grad


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_copies_pickles_and_vmap(name):
    model, _ = adapted(name)
    out = run(name, model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert alike(run(name, twin), out)
        with torch.no_grad():
            for pair in adapter_tensors(twin).values():
                pair[1].zero_()
        assert alike(run(name, model), out)
        eject(twin)
    if name in WITHOUT_VMAP:
        return
    # With a gradient: without one an attention takes a route that has no batching rule.
    stacks = {
        key: p.detach().repeat(2, *[1] * p.ndim).requires_grad_()
        for key, p in model.named_parameters()
        if p.requires_grad
    }
    together = torch.vmap(lambda tensors: functional_call_of(name, model, tensors))(stacks)
    torch.testing.assert_close(together, out.expand(2, *out.shape))


def functional_call_of(name, model, tensors):
    class Runs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return MODELS[name][1](self.inner, x)

    return functional_call(Runs(), {f"inner.{key}": tensor for key, tensor in tensors.items()}, (MODELS[name][2],))


@pytest.mark.parametrize("name", MODELS)
def test_files_go_round(name, tmp_path):
    model, _ = adapted(name)
    save_adapter(model, tmp_path)
    again = made(name)
    load_adapter(again, tmp_path)
    assert alike(run(name, again), run(name, model))


# Dynamo looks at the gradient of whatever it finds in a module.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("attention", marks=pytest.mark.slow),  # the encoder has one inside
        "encoder",
        "lstm cell",
        "experts",
        "scaled embedding",
    ],
)
@pytest.mark.usefixtures("compilable")
def test_compiled(name):
    model, _ = adapted(name)
    model.eval()
    out = run(name, model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(MODELS[name][1](compiled, MODELS[name][2]), out)
    with disabled(model):
        base = run(name, model)
        torch.testing.assert_close(MODELS[name][1](compiled, MODELS[name][2]), base)
    assert not alike(base, out)


@given(st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_stack_has_an_a_and_b_for_each_matrix(r, experts, transposed):
    layer = nn.Module()
    layer.is_transposed = transposed
    layer.w = nn.Parameter(torch.randn(experts, *((4, 5) if transposed else (5, 4)), dtype=torch.float64))
    layer.forward = lambda: layer.w
    holder = nn.ModuleDict({"layer": layer})
    report = inject(holder, LoRAConfig(r=r, alpha=2.0, target_modules="w"))
    assert report.trainable_parameters == experts * r * 9
    A, B = adapter_tensors(holder)["layer.w"]
    assert not torch.equal(A[:r], A[r : 2 * r]) or experts == 1
    nn.init.normal_(B)
    before = layer.w.detach().clone()
    merge(holder)
    for e in range(experts):
        own = slice(e * r, (e + 1) * r)
        delta = 2.0 / r * (B[:, own] @ A[own])
        torch.testing.assert_close(layer.w[e] - before[e], delta.mT if transposed else delta)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_an_encoder_in_eval_with_padding():
    """torch's fast path would turn this into nested tensors and read the weights in one native call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False, False, True], [False, False, False]])
    inject(model, LoRAConfig(r=2, target_modules="self_attn"))
    for _, B in adapter_tensors(model).values():
        nn.init.normal_(B)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        out = model(x, src_key_padding_mask=mask)
        merge(model)
        torch.testing.assert_close(model(x, src_key_padding_mask=mask)[~mask], out[~mask])


def test_a_forward_that_fails_leaves_the_parameter_to_be_seen():
    model, _ = adapted("lstm")
    before = model.weight_ih_l0
    flat = list(model._flat_weights)
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 3, 7, dtype=torch.float64))
    assert model.weight_ih_l0 is before
    assert isinstance(before, nn.Parameter)
    assert all(a is b for a, b in zip(model._flat_weights, flat, strict=True))


def test_several_adapters_add_up():
    model, _ = adapted("attention")
    inject(model, LoRAConfig(r=1, target_modules="out_proj"), "two")
    with torch.no_grad():
        next(iter(adapter_tensors(model, "two").values()))[1].fill_(0.5)
    from rankwise.lora import activate

    activate(model, "default", "two")
    out = run("attention", model)
    merge(model)
    torch.testing.assert_close(run("attention", model), out, rtol=0, atol=1e-10)


# Names


def names(model, **settings):
    return [target.name for target in inject(model, LoRAConfig(r=1, **settings)).adapted]


def test_ways_to_name_an_attention():
    def layer():
        return nn.TransformerEncoderLayer(4, 2, 8)

    both = ["self_attn.in_proj_weight", "self_attn.out_proj"]
    assert names(layer()) == [*both, "linear1", "linear2"]
    assert names(layer(), target_modules="self_attn") == both
    assert names(layer(), target_modules="self_attn.out_proj") == both[1:]
    assert names(layer(), target_modules="in_proj_weight") == both[:1]
    assert names(layer(), exclude_modules="self_attn") == ["linear1", "linear2"]
    model = layer()
    report = inject(model, LoRAConfig(r=3, target_modules="self_attn", rank_pattern={"self_attn": 1}))
    assert [(target.r, target.type) for target in report.adapted] == [
        (1, "Parameter"),
        (1, "NonDynamicallyQuantizableLinear"),
    ]


def test_the_further_key_and_value_of_an_attention_are_no_matrices():
    model = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    assert names(model) == ["in_proj_weight", "out_proj"]
    with pytest.raises(TargetError, match='No module matches target "bias_k"'):
        names(nn.MultiheadAttention(4, 2, add_bias_kv=True), target_modules="bias_k")


def test_parameters_are_found_by_patterns_that_match_no_module():
    def model():
        return nn.ModuleDict({"experts": Experts(), "head": nn.Linear(2, 2)})

    assert names(model(), target_modules="*") == ["head"]
    assert names(model(), target_modules="*.up") == ["experts.up"]
    assert names(model(), target_modules=["head", "re:.*[.](up|down)"]) == ["experts.up", "experts.down", "head"]
    assert names(model(), target_modules=lambda name, module: name.endswith("down")) == ["experts.down"]
    with pytest.raises(TargetError, match=r'can\'t be adapted: .* Name its parameter, for example "experts.up"'):
        inject(model(), LoRAConfig(target_modules="experts"))
    with pytest.raises(TargetError, match='Did you mean "up"'):
        inject(model(), LoRAConfig(target_modules="upp"))


def test_the_report_says_what_is_by_name_only():
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 3), "experts": Experts(), "head": nn.Linear(2, 2)})
    report = inject(model, LoRAConfig(r=1))
    assert {(out.type, out.reason) for out in report.left_out} == {("Parameter", "by name only")}
    owned = ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert [out.name for out in report.left_out] == [*owned, "experts.up", "experts.down"]


# What a forward reaches


def test_an_example_finds_the_reader_of_a_layer_that_is_never_called():
    model, x = nn.Sequential(Reads(), nn.Linear(6, 2), nn.Dropout()), torch.randn(3, 4)
    before = torch.random.get_rng_state()
    report = inject(model, LoRAConfig(r=2), example=x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model)
    assert [target.reader_name for target in report.adapted] == ['"0"', ""]
    assert '"0.qkv" is read, not called: its adapter acts through the weight during the forward of "0"' in str(report)
    model.eval()
    for _, B in adapter_tensors(model).values():
        nn.init.normal_(B)
    out = model(x)
    with disabled(model):
        assert not torch.allclose(model(x), out)
    merge(model)
    torch.testing.assert_close(model(x), out)


@pytest.mark.parametrize("example", [{"x": torch.ones(1, 4)}, (torch.ones(1, 4),), [torch.ones(1, 4)]])
def test_examples_by_keyword_and_position(example):
    report = inject(Reads(), LoRAConfig(r=1), example=example)
    assert [target.reader_name for target in report.adapted] == ["the model"]


class CallsAndReads(nn.Module):
    """As a language model with tied weights: the embedding is looked up, and its weight read for the output."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)

    def forward(self, ids):
        return nn.functional.linear(self.embedding(ids), self.embedding.weight)


class Positions(nn.Embedding):
    """As ProphetNet's: its own forward, and a second method that looks up without a call."""

    def forward(self, ids):
        return super().forward(ids) * 2.0

    def shifted(self, ids):
        return super().forward(ids + 1)


class TwoStreams(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = Positions(7, 4)

    def forward(self, ids):
        return self.positions(ids) * self.positions.shifted(ids)


class Wraps(nn.Module):
    """Reads the weights of an attention in its own function, without calling the attention."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return nn.functional.linear(x, self.attention.in_proj_weight) @ self.attention.out_proj.weight.repeat(3, 1)


class ElseWhere(nn.Module):
    """The layer is called before its owner runs, which reads the weight once more."""

    def __init__(self):
        super().__init__()
        self.reads = Reads()

    def forward(self, x):
        return self.reads(x) + self.reads.qkv(x)


class Cache:
    """What a forward may change."""


class WithCache(Reads):
    def forward(self, x, cache):
        return super().forward(x)


def fill(model):
    with torch.no_grad():
        for pair in adapter_tensors(model).values():
            for tensor in pair:
                tensor.normal_(std=0.3)


READING = {
    "reads": (lambda: nn.Sequential(Reads(), nn.Linear(6, 2), nn.Dropout(0.0)), torch.randn(3, 4), "all-linear"),
    "reads, itself": (Reads, torch.randn(3, 4), "all-linear"),
    "calls and reads": (lambda: nn.Sequential(CallsAndReads(), nn.Linear(7, 7)), IDS, ["*embedding", "1"]),
    "reads outside of its reader": (lambda: nn.Sequential(TwoStreams(), nn.Linear(4, 4)), IDS, ["*positions", "1"]),
    "an attention that is not called": (
        lambda: nn.Sequential(Wraps(), nn.Linear(4, 4)),
        torch.randn(3, 4),
        "all-linear",
    ),
    "called outside of what reads": (
        lambda: nn.Sequential(ElseWhere(), nn.Linear(6, 6)),
        torch.randn(3, 4),
        "all-linear",
    ),
}


@pytest.mark.parametrize("name", READING)
def test_an_example_finds_the_same_readers(name):
    make, x, targets = READING[name]
    model = make()
    twin = copy.deepcopy(model)
    inject(model, LoRAConfig(r=2, target_modules=targets))
    inject(twin, LoRAConfig(r=2, target_modules=targets), example=x)
    fill(model)
    twin.load_state_dict(model.state_dict())
    assert alike(model(x), twin(x))
    assert [lora.below for _, _, lora in loras_in(model)] == [lora.below for _, _, lora in loras_in(twin)]


@pytest.mark.parametrize("name", READING)
def test_without_an_example_the_first_forward_finds_the_readers(name):
    make, x, targets = READING[name]
    torch.manual_seed(0)
    model = make()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    inject(model, LoRAConfig(r=2, target_modules=targets))
    fill(model)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for watched in (model, twin):
        out = watched(x)
        out.sum().backward()
        assert all(bool(p.grad.any()) for pair in adapter_tensors(watched).values() for p in pair)
        assert alike(watched(x), out)
        merge(watched)
        torch.testing.assert_close(watched(x), out)
        eject(watched)
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in watched.modules()] == hooks


class Box(nn.Module):
    """Has a parameter that its own forward reads, were it called."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.matrix


class ReadsItsParts(nn.Module):
    """Reads what a parameter's owner and an attention would read themselves, and calls neither."""

    def __init__(self):
        super().__init__()
        self.box, self.attention = Box(), nn.MultiheadAttention(4, 2)

    def forward(self, x):
        x, of = x @ self.box.matrix, self.attention
        weights = of.in_proj_weight, of.in_proj_bias, None, None, False, 0.0, of.out_proj.weight, of.out_proj.bias
        return nn.functional.multi_head_attention_forward(x, x, x, 4, 2, *weights)[0]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_parameters_and_attentions_that_another_module_reads(inside, given):
    model, x = ReadsItsParts(), torch.randn(3, 2, 4)
    model = nn.Sequential(model, nn.Linear(4, 4)) if inside else model
    report = inject(model, LoRAConfig(r=2, target_modules=["matrix", "attention"]), example=x if given else None)
    fill(model)
    out = model(x)
    if given:
        assert {target.reader_name for target in report.adapted} == {'"0"' if inside else "the model"}
    out.sum().backward()
    assert all(bool(p.grad.any()) for pair in adapter_tensors(model).values() for p in pair)
    with disabled(model):
        assert not torch.allclose(model(x), out)
    merge(model)
    torch.testing.assert_close(model(x), out)


def test_a_parameter_whose_owner_is_never_called_nor_read_is_said():
    model = nn.ModuleDict({"box": Box(), "used": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    inject(model, LoRAConfig(r=1, target_modules=["matrix", "used"]))
    with pytest.warns(UserWarning, match=r'reached 1 of the adapted layers not at all: "box\.matrix"'):
        model(torch.ones(1, 4))


def test_a_loaded_adapter_acts_where_its_weight_is_read_from_the_first_forward_on(tmp_path):
    model, x = nn.Sequential(Reads()), torch.randn(3, 4)
    inject(model, LoRAConfig(r=2), example=x)
    fill(model)
    save_adapter(model, tmp_path)
    again = nn.Sequential(Reads())
    again.load_state_dict(base_state_dict(model))
    load_adapter(again, tmp_path)
    assert alike(again(x), model(x))


def test_a_forward_with_arguments_that_it_may_change_is_not_run_again():
    model, x = nn.Sequential(), torch.randn(3, 4)
    model.inner = WithCache()
    model.forward = lambda x, cache: model.inner(x, cache)
    inject(model, LoRAConfig(r=2))
    fill(model)
    with pytest.raises(AdapterError, match=r'reads the weight of "inner\.qkv" without .* Call the model again'):
        model(x, Cache())
    out = model(x, Cache())
    merge(model)
    torch.testing.assert_close(model(x, Cache()), out)


def test_a_forward_that_fails_is_no_first_forward():
    model = nn.Sequential(Reads(), nn.Linear(6, 2))
    inject(model, LoRAConfig(r=2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(3, 5))
    fill(model)
    out = model(torch.ones(3, 4))
    merge(model)
    torch.testing.assert_close(model(torch.ones(3, 4)), out)


@pytest.mark.parametrize("use", ["type_as", "zeros_like", "shape"])
def test_asking_a_weight_for_its_type_is_no_reading(use):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    uses = {
        "type_as": lambda x: x.type_as(model[0].weight),
        "zeros_like": lambda x: x + torch.zeros_like(model[0].weight)[0],
        "shape": lambda x: x * model[0].weight.shape[0],
    }
    model.forward = lambda x: model[1](model[0](uses[use](x)))
    inject(model, LoRAConfig(r=1))
    model(torch.ones(2, 4))
    assert not any(lora.has_reader for _, _, lora in loras_in(model))


def test_laying_out_the_weights_of_an_rnn_is_no_reading():
    """As many models do before they call one; on a CPU it does nothing, so the operation is given a kernel there."""

    class Flattens(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 3)

        def forward(self, x):
            weights = [p for name, p in self.lstm.named_parameters(recurse=False) if name.startswith("weight")]
            torch._cudnn_rnn_flatten_weight(weights, 4, 4, 2, 3, 0, 1, False, False)
            return self.lstm(x)[0]

    model = nn.Sequential(Flattens())
    inject(model, LoRAConfig(r=1, target_modules="*lstm"))
    with torch.library._scoped_library("aten", "IMPL", "CPU") as library:
        library.impl("_cudnn_rnn_flatten_weight", lambda *_: torch.zeros(1))
        model(torch.ones(2, 1, 4))
    assert [lora.below for _, _, lora in loras_in(model)] == ["", ""]


class Chooses(nn.Module):
    """As a mixture of experts: an input goes one of two ways."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x, way):
        return self.ways[way](x)


@pytest.mark.parametrize("given", [True, False])
def test_what_a_forward_does_not_reach_is_said(given):
    model, batch = Chooses(), {"x": torch.ones(1, 4), "way": 0}

    def first_forward():
        inject(model, LoRAConfig(r=1), example=batch if given else None)
        model(**batch)

    with pytest.warns(UserWarning, match=r'reached 1 of the adapted layers not at all: "ways\.1"'):
        first_forward()
    model(**batch)


class Shares(nn.Module):
    """As T5: the embedding that the model calls shared is called under other names only."""

    def __init__(self):
        super().__init__()
        self.shared, self.encoder, self.decoder = nn.Embedding(7, 4), nn.Embedding(7, 4), nn.Embedding(7, 4)
        self.encoder.weight = self.decoder.weight = self.shared.weight

    def forward(self, ids, both):
        return self.encoder(ids) + self.decoder(ids) if both else ids


@pytest.mark.parametrize("both", [True, False])
def test_a_weight_is_reached_under_any_of_its_names(both, recwarn):
    model = Shares()
    inject(model, LoRAConfig(r=1, target_modules="*"))
    model(IDS, both)
    said = [str(warning.message) for warning in recwarn]
    assert said == [] if both else 'reached 3 of the adapted layers not at all: "shared"' in said[0]


def test_an_attention_that_is_never_called_is_said():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(4, 4)})
    model.forward = lambda x: model["linear"](x)
    inject(model, LoRAConfig(r=1))
    with pytest.warns(UserWarning, match=r'reached 2 of .*"attention\.in_proj_weight", "attention\.out_proj"'):
        model(torch.ones(2, 4))


def test_a_first_forward_that_reaches_all_says_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    model.forward = lambda x: model[1](*[model[0](x)] * 3)[0]
    inject(model, LoRAConfig(r=1))
    model(torch.ones(2, 1, 4))
