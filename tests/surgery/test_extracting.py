"""A LoRA of a difference: known ones come back, and with peft the base becomes the tuned model."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import rankwise
from adapted_models import MODELS, Experts, bert, gpt2, llama, outputs
from rankwise.adapter_files.updates import read_updates
from rankwise.cli import main
from rankwise.errors import AdapterFileError, ConfigError

R = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def changed(model: nn.Module, r: int = R, kinds: tuple[type, ...] = (nn.Linear,)) -> nn.Module:
    """The same model with an update of a known rank in its layers."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, kinds) or type(module).__name__ == "Conv1D":
                weight = module.weight
                rows, columns = weight.shape[0], weight[0].numel()
                left, right = (torch.randn(n, r, generator=generator) for n in (rows, columns))
                weight.add_(0.05 * (left @ right.T).view(weight.shape))
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_known_update_comes_back(tmp_path: Path, name: str) -> None:
    base = MODELS[name]()
    tuned = changed(base)
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tuned.save_pretrained(tmp_path / "tuned")
    report = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=R)
    assert report.error < 1e-5
    assert report.notes == ()
    mine = MODELS[name]()
    rankwise.load_adapter(mine, tmp_path / "a")
    torch.testing.assert_close(outputs(mine), outputs(tuned), rtol=1e-4, atol=1e-4)
    theirs = PeftModel.from_pretrained(MODELS[name](), str(tmp_path / "a")).eval()
    torch.testing.assert_close(outputs(theirs), outputs(tuned), rtol=1e-4, atol=1e-4)
    by_error = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "b", error=1e-3)
    assert {update.r for update in by_error.updates} == {R}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.grouped = nn.Conv1d(6, 4, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.grouped(self.conv(self.tokens(ids).mT)).mT))


IDS = torch.arange(9).view(1, 9)


def test_kinds_of_layers_biases_and_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = Mixed().eval()
    tuned = changed(base, 2, (nn.Linear, nn.Embedding, nn.Conv1d))
    with torch.no_grad():
        tuned.norm.weight.add_(0.5)
        tuned.conv.bias.add_(0.5)
    for model, name in ((base, "base"), (tuned, "tuned")):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    with torch.device("meta"):
        layers = Mixed()
    report = rankwise.extract(*files, tmp_path / "a", rank=2, model=layers, base_name="base")
    assert {update.path for update in report.updates} == {"tokens", "conv", "grouped", "head"}
    assert "Saved whole (modules_to_save), 1 modules: norm." in report.notes[-1]
    mine = copy.deepcopy(base)
    rankwise.load_adapter(mine, tmp_path / "a")
    torch.testing.assert_close(mine(IDS), tuned(IDS), rtol=1e-4, atol=1e-5)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "a")).eval()
    torch.testing.assert_close(theirs(IDS), tuned(IDS), rtol=1e-4, atol=1e-5)


def test_a_new_head_over_a_headless_base(tmp_path: Path) -> None:
    """The tuned classifier's file calls the encoder "bert."; the base's file doesn't."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = BertModel(BertConfig(vocab_size=20, **sizes), add_pooling_layer=True)
    base.save_pretrained(tmp_path / "base")
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).eval()
    tuned.bert.load_state_dict(changed(tuned.bert).state_dict())
    tuned.save_pretrained(tmp_path / "tuned")
    report = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=R)
    assert any("1 modules: classifier" in note for note in report.notes)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = PeftModel.from_pretrained(again, str(tmp_path / "a")).eval()
    ids = torch.arange(6).view(1, 6)
    torch.testing.assert_close(theirs(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-5)


def test_tied_embeddings(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    tuned = changed(base, kinds=(nn.Embedding,))
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    report = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=R)
    assert {update.path for update in report.updates} == {"model.embed_tokens", "lm_head"}
    rankwise.load_adapter(base, tmp_path / "a")
    torch.testing.assert_close(outputs(base), outputs(tuned), rtol=1e-4, atol=1e-4)


def test_what_is_far_from_low_rank_is_named(tmp_path: Path) -> None:
    base = llama()
    tuned = changed(base, r=16)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    report = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=1)
    assert "not of low rank: their relative error is above 0.5" in str(report)
    before, after = base.state_dict(), tuned.state_dict()
    for update in report.updates:
        S = torch.linalg.svdvals((after[f"{update.path}.weight"] - before[f"{update.path}.weight"]).double())
        assert update.error == pytest.approx(float(S[1:].norm() / S.norm()), rel=1e-5)


def difference(adapter: Path, path: str) -> np.ndarray:
    """s B A of one layer, as the folder holds it, in float64."""
    update = read_updates(adapter).updates[path]
    return update.scale * update.pair.B[0].double().numpy() @ update.pair.A[0].double().numpy()


@pytest.mark.parametrize("rank", [1, 4])
def test_it_is_numpys_truncation_of_the_difference(tmp_path: Path, rank: int) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for model, name in ((base, "base"), (tuned, "tuned")):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    report = rankwise.extract(*files, tmp_path / "a", rank=rank, model=base)
    for update in report.updates:
        weights = [model.get_submodule(update.path).weight.detach().double().numpy() for model in (tuned, base)]
        U, S, Vt = np.linalg.svd(weights[0] - weights[1], full_matrices=False)
        np.testing.assert_allclose(
            difference(tmp_path / "a", update.path), U[:, :rank] * S[:rank] @ Vt[:rank], atol=1e-6
        )
        assert update.error == pytest.approx(float(np.linalg.norm(S[rank:]) / np.linalg.norm(S)), rel=1e-5)


def test_stacks_of_experts_are_named(tmp_path: Path) -> None:
    """Parameters of three dimensions are left out; the layers beside them are not."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), Experts())
    both, alone = copy.deepcopy(base), copy.deepcopy(base)
    with torch.no_grad():
        both[0].weight.add_(torch.outer(torch.arange(4.0), torch.ones(4)))
        for model in (both, alone):
            model[1].up.add_(1.0)
    for model, name in ((base, "base"), (both, "both"), (alone, "alone")):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    base_file, both_file, alone_file = (tmp_path / f"{name}.safetensors" for name in ("base", "both", "alone"))
    report = rankwise.extract(base_file, both_file, tmp_path / "a", rank=1, model=base)
    assert report.notes[-1] == "Not in the adapter, though they differ, 1 tensors: 1.up."
    change = (both[0].weight - base[0].weight).detach().double().numpy()
    np.testing.assert_allclose(difference(tmp_path / "a", "0"), change, atol=1e-6)
    with pytest.raises(AdapterFileError, match=r'no layer that LoRA adapts, only in 1 others \("1.up"\)'):
        rankwise.extract(base_file, alone_file, tmp_path / "b", rank=1, model=base)


def test_experts_that_files_hold_one_by_one_are_named(tmp_path: Path) -> None:
    """transformers writes Mixtral's experts under names that its own modules don't have."""
    config = MixtralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    torch.manual_seed(0)
    base = MixtralForCausalLM(config).eval()
    tuned = changed(base)
    with torch.no_grad():
        tuned.model.layers[0].mlp.experts.down_proj[1].add_(0.1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    report = rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=R)
    assert "though they differ, 1 tensors: model.layers.0.block_sparse_moe.experts.1.w2.weight." in report.notes[-1]
    assert "model.layers.0.self_attn.q_proj" in {update.path for update in report.updates}


def test_an_enlarged_vocabulary(tmp_path: Path) -> None:
    """Refused, with a way out that works: the base enlarged likewise."""
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.resize_token_embeddings(24, mean_resizing=False)
    tuned = changed(base, kinds=(nn.Linear, nn.Embedding))
    base.save_pretrained(tmp_path / "enlarged")
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(AdapterFileError, match=r"shape \(20, 16\) .* and \(24, 16\) .*resize_token_embeddings"):
        rankwise.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", rank=R)
    report = rankwise.extract(tmp_path / "enlarged", tmp_path / "tuned", tmp_path / "a", rank=R)
    assert {"model.embed_tokens", "lm_head"} <= {update.path for update in report.updates}
    assert report.error < 1e-5
    mine, theirs = (LlamaForCausalLM.from_pretrained(tmp_path / "enlarged").eval() for _ in range(2))
    rankwise.load_adapter(mine, tmp_path / "a")
    peer = PeftModel.from_pretrained(theirs, str(tmp_path / "a")).eval()
    ids = torch.arange(24).view(1, 24)
    for model in (mine, peer):
        torch.testing.assert_close(model(ids).logits, tuned(ids).logits, rtol=1e-4, atol=1e-4)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    bert().save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterFileError, match="have the same weights"):
        rankwise.extract(tmp_path / "base", tmp_path / "base", tmp_path / "a", rank=1)
    with pytest.raises(AdapterFileError, match=r"empty has no model.safetensors"):
        rankwise.extract(tmp_path / "base", tmp_path / "empty", tmp_path / "a", rank=1)
    with pytest.raises(ConfigError, match="Nothing is given"):
        rankwise.extract(tmp_path / "base", tmp_path / "base", tmp_path / "a")
    path = tmp_path / "bert" / "model.safetensors"
    wide = {key: torch.cat([t, t]) if "word_embeddings" in key else t for key, t in load_file(path).items()}
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / "model.safetensors")
    (tmp_path / "wide" / "config.json").write_bytes((tmp_path / "bert" / "config.json").read_bytes())
    with pytest.raises(AdapterFileError, match=r"has shape \(20, 16\) .* and \(40, 16\) .*resize_token_embeddings"):
        rankwise.extract(tmp_path / "bert", tmp_path / "wide", tmp_path / "a", rank=1)
    (tmp_path / "wide" / "config.json").unlink()
    with pytest.raises(AdapterFileError, match=r"config\.json, which says what kinds of layers"):
        rankwise.extract(tmp_path / "bert", tmp_path / "wide", tmp_path / "a", rank=1)
    assert main(["extract", str(tmp_path / "base"), str(tmp_path / "base"), "--out", str(tmp_path / "a")]) == 2
    assert "give one of --rank, --energy, --error" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
