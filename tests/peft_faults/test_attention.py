"""What peft 0.21.2 does to nn.MultiheadAttention: the delta of `out_proj` twice. Here it counts once."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from adapted_models import fill
from rankwise.adapter_files import load_adapter, save_adapter
from rankwise.lora import LoRAConfig, adapter_tensors, inject, merge, unmerge
from rounding import alike


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def model():
    torch.manual_seed(0)
    return Attends().double().eval()


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).double()


def by_hand(inside, outside, times):
    """The plain attention with s B A added to the input projection, and so many times to the output's."""
    plain = model()
    with torch.no_grad():
        plain.attention.in_proj_weight += inside
        plain.attention.out_proj.weight += times * outside
        return plain(X)


def test_the_delta_of_out_proj_counts_once():
    ours = model()
    report = inject(ours, LoRAConfig(r=2, alpha=4.0, target_modules=["in_proj_weight", "out_proj"]))
    assert len(report.adapted) == 2
    pairs = adapter_tensors(ours)
    fill(tensor for pair in pairs.values() for tensor in pair)
    inside, outside = (2.0 * (B @ A).detach() for A, B in pairs.values())
    wanted = by_hand(inside, outside, 1)
    assert not torch.allclose(wanted, by_hand(inside, outside, 2), atol=1e-3)
    torch.testing.assert_close(ours(X), wanted)
    merge(ours)
    torch.testing.assert_close(ours(X), wanted)
    unmerge(ours)
    torch.testing.assert_close(ours(X), wanted)


def test_a_file_of_pefts_is_read_as_its_maths_says(tmp_path):
    theirs = get_peft_model(model(), LoraConfig(r=2, lora_alpha=4, target_modules=["attention"]))
    fill(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs = theirs.double().eval()
    theirs.save_pretrained(str(tmp_path))
    ours = model()
    with pytest.warns(UserWarning, match=r'^"attention\.out_proj" .*adds delta .* twice, .* here it counts once'):
        report = load_adapter(ours, tmp_path)
    assert len(report.notes) == 1
    inside, outside = (2.0 * (B @ A).detach() for A, B in adapter_tensors(ours).values())
    torch.testing.assert_close(ours(X), by_hand(inside, outside, 1))
    # The fault itself: should a later peft mend it, this line says so.
    torch.testing.assert_close(theirs(X).detach(), by_hand(inside, outside, 2))


@pytest.mark.parametrize("target", ["in_proj_weight", "out_proj"])
def test_either_projection_can_be_adapted_alone(target, tmp_path):
    # peft has no way to adapt one without the other.
    ours, again = model(), model()
    inject(ours, LoRAConfig(r=2, target_modules=target))
    fill(tensor for pair in adapter_tensors(ours).values() for tensor in pair)
    # Of a file of our own nothing is said.
    assert load_adapter(again, save_adapter(ours, tmp_path)).notes == []
    assert alike(again(X), ours(X))
    assert not torch.allclose(ours(X), model()(X), atol=1e-3)
