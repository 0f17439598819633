"""What peft 0.21.2 gets wrong when it attaches adapters to plain modules; here each of these cases is right."""

import copy

import pytest
import torch
from torch import nn

from rankwise.errors import TargetError
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge, trainable_parameters, unmerge
from rounding import alike


def adapted(model, **settings):
    """Attach an adapter with random A and B."""
    inject(model, LoRAConfig(**{"r": 2, "alpha": 4.0, **settings}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.normal_(std=0.3, generator=generator)
    return model


def assert_merges(model, x, target):
    """Merged and unmerged are one function, which is not the base's; unmerge gives the weights back exactly."""
    base = copy.deepcopy(model)
    adapted(model, target_modules=target)
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    assert not torch.allclose(before, base(x), atol=1e-3)
    merge(model)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    unmerge(model)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_an_adapter_in_an_encoder_layer_acts_in_eval():
    # In eval torch's fast path reads the weights of linear1 and linear2 without calling them.
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 16)
    with torch.no_grad():
        base = model(x)
        adapted(model, target_modules=["linear1", "linear2"])
        in_eval = model(x)
        model.train()
        torch.testing.assert_close(in_eval, model(x))
    assert not torch.allclose(in_eval, base, atol=1e-2)


def test_out_proj_of_attention_is_trained():
    # MultiheadAttention reads the weight of out_proj and never calls it: a hook on it would never run.
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
    base = attention(x, x, x)[0]
    adapted(attention, target_modules="out_proj")
    output = attention(x, x, x)[0]
    output.square().sum().backward()
    assert not torch.allclose(output, base, atol=1e-2)
    assert all(bool(parameter.grad.any()) for parameter in trainable_parameters(attention))


CONVOLUTIONS = {
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "dilated and circular": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"),
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_dilated_and_circular_convolutions_run_and_merge(make):
    torch.manual_seed(0)
    assert_merges(nn.Sequential(make()).double(), torch.randn(2, 4, 9, 9).double(), "0")


def test_a_flat_kernel_in_three_dimensions_merges():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 5, (1, 1, 3))).double()
    assert_merges(model, torch.randn(2, 3, 2, 4, 6).double(), "0")


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_tied_weights_merge_as_one():
    torch.manual_seed(0)
    model = Tied().double()
    assert_merges(model, torch.tensor([[1, 2, 3]]), "head")
    assert model.head.weight is model.embedding.weight


def test_a_module_under_two_names_is_adapted_under_both():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    model["again"] = model["first"]
    x = torch.randn(3, 4)
    base = model["again"](x)
    report = inject(model, LoRAConfig(r=2, target_modules=["again", "second"]))
    assert [(target.name, target.aliases) for target in report.adapted] == [("first", ("again",)), ("second", ())]
    with torch.no_grad():
        adapter_tensors(model)["first"][1].fill_(1.0)
    assert alike(model["again"](x), model["first"](x))
    assert not torch.allclose(model["again"](x), base)


def test_a_misspelt_second_target_is_refused():
    model = nn.Sequential(nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)}))
    with pytest.raises(TargetError, match=r'No module matches target "v_prj".* Did you mean "v_proj"'):
        inject(model, LoRAConfig(target_modules=["q_proj", "v_prj"]))
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_modes_are_left_as_found():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).eval()
    model[2].train()
    before = {name: module.training for name, module in model.named_modules()}
    inject(model, LoRAConfig())
    assert {name: module.training for name, module in model.named_modules() if name in before} == before
    assert (model[0].lora.training, model[2][0].lora.training) == (False, True)


def test_a_bfloat16_merge_says_what_it_lost():
    # Entries of delta far below 1/512 of the weight's: bfloat16 rounds most of them away.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64)).to(torch.bfloat16)
    adapted(model)
    with torch.no_grad():
        adapter_tensors(model)["0"][1].mul_(1e-3)
        before = model[0].weight.clone()
        layer = merge(model).worst
        changed = (model[0].weight != before).double().mean()
    assert layer.dtype == "bfloat16"
    assert layer.held == pytest.approx(float(changed))
    assert layer.held < 0.5
    assert layer.error > 0.1
