"""Packs over quantised bases, compared with a loop of plain torch over the dequantised base."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plain_loop import Plain, train_plainly
from quantised_layers import Net, inputs
from rankwise import quantize
from rankwise.errors import PackError
from rankwise.lora import adapter_tensors, inject, trainable_parameters
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from reference import update_difference

STEPS = 10


def members(**settings):
    return [Member(name=f"r{r}", lora=LoRAConfig(r=r, **settings)) for r in (1, 2, 5)]


def batch():
    return {"x": inputs(), "labels": torch.arange(5)}


def call(model, batch):
    return model(batch["x"])


def loss(outputs, batch):
    return F.cross_entropy(outputs, batch["labels"])


def numbers(model):
    """What the base holds; torchao's tensors know no `equal`."""
    values = model.state_dict().values()
    return [value.dequantize() if hasattr(value, "qdata") else value.clone() for value in values]


def train(model, pack):
    both = {key: value.unsqueeze(0) for key, value in batch().items()}
    with pack.attached(batch(), training=False):
        pass  # as before a training run: the first evaluation
    with pack.attached(batch(), training=True):
        for _ in range(STEPS):
            pack.step(both, torch.full((len(pack),), 1e-3), None, None)
    return pack.states()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "torchao int8", "torchao intx", "int8"])
@pytest.mark.parametrize("bias", [True, False])
def test_updates_are_those_of_the_plain_loop_over_dequantised_weights(kind, bias):
    model = Net(kind, bias)
    reference = Net(kind, bias).train().dequantised()
    before = numbers(model)
    pack = Pack(model, members(), loss, call=call)
    start = pack.states()
    ours = train(model, pack)
    assert pack.notes == []
    for member in members():
        plain = Plain(scale=member.lora.scale(), lr=1e-3)
        theirs = train_plainly(copy.deepcopy(reference), plain, start[member.name], [batch()] * STEPS, call, loss)
        assert update_difference(ours[member.name], theirs, start[member.name]) <= 1e-3
    assert all(map(torch.equal, before, numbers(model)))


@pytest.mark.parametrize("init", ["loftq", "pissa", "orthogonal"])
def test_starts_over_4_bits_are_each_alone(init):
    def base():
        model = Net().train()
        quantize(model, "nf4", error_rank=4)
        return model

    both = [Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=8, init=init)) for r in (2, 4)]
    pack = Pack(base(), both, loss, call=call)
    start = pack.states()
    ours = train(base(), pack)
    for member in both:
        own = base()
        inject(own, member.lora)
        optimiser = torch.optim.AdamW(trainable_parameters(own), lr=1e-3, weight_decay=0.0)
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss(call(own, batch()), batch()).backward()
            optimiser.step()
        pairs = adapter_tensors(own).items()
        alone = {f"{path}.{key}": t.detach() for path, pair in pairs for key, t in zip("AB", pair, strict=True)}
        assert update_difference(ours[member.name], alone, start[member.name]) <= 1e-3
        assert start[member.name]["up.B"].any()


def test_where_the_rows_can_not_pass_together_they_run_one_after_another():
    class Counts(Net):
        """Refuses more rows than one batch has."""

        def forward(self, x):
            if len(x) > 5:
                raise ValueError("too many rows")
            return super().forward(x)

    model = Counts("nf4")
    pack = Pack(model, members(), loss, call=call)
    start = pack.states()
    ours = train(model, pack)
    assert "run one after another" in pack.notes[0]
    reference = Net("nf4").dequantised()
    for member in members():
        plain = Plain(scale=member.lora.scale(), lr=1e-3)
        theirs = train_plainly(copy.deepcopy(reference), plain, start[member.name], [batch()] * STEPS, call, loss)
        assert update_difference(ours[member.name], theirs, start[member.name]) <= 1e-3


def test_outlier_columns_mix_rows_and_are_refused_by_name():
    model = Net("int8")
    for layer in (model.up, model.down):
        layer.state.threshold = 1.0
    pack = Pack(model, members(), loss, call=call)
    with pytest.raises(PackError, match='mixed in "up"'), pack.attached(batch(), training=True):
        pass


def test_a_quantised_layer_is_not_trained_whole():
    with pytest.raises(PackError, match='"down" is quantised, so "a" can\'t train it in full'):
        Pack(Net("nf4"), [Member(name="a", modules_to_save=("down",))], loss, call=call)


def test_a_model_without_a_plain_weight():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = Net("nf4", bias=False).up

        def forward(self, x):
            return self.up(x)

    pack = Pack(Bare(), members(), loss, call=call)
    assert pack.dtype == torch.float32
    states = train(Bare(), pack)
    assert all(value.isfinite().all() for state in states.values() for value in state.values())
