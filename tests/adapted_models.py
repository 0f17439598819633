"""Small models, adapted by us and by PEFT, for the tests of adapter files."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM

from rankwise.lora import LoRAConfig, adapter_tensors, inject


class MLP(nn.Module):
    """Nested, and with names that are suffixes of one another."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.block = nn.ModuleDict({"up": nn.Linear(8, 8), "down": nn.Linear(8, 6)})
        self.down = nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.block["down"](self.block["up"](self.up(x).relu()).relu()))


def mlp():
    torch.manual_seed(0)
    return MLP().eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return BertModel(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()


def outputs(model):
    generator = torch.Generator().manual_seed(3)
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    with torch.no_grad():
        if isinstance(inner, MLP):
            return model(torch.randn(5, 6, generator=generator).to(next(model.parameters()).dtype))
        return model(torch.randint(20, (2, 7), generator=generator))[0]


def fill(parameters):
    """Give every matrix of an adapter values, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1, generator=generator)


def ours(model, **settings):
    inject(model, LoRAConfig(**{"r": 2, "alpha": 6.0, **settings}))
    fill(parameter for pair in adapter_tensors(model).values() for parameter in pair)
    return model


def theirs(model, **settings):
    wrapped = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 6, **settings}))
    fill(parameter for name, parameter in wrapped.named_parameters() if "lora_" in name)
    return wrapped.eval()


MODELS = {"mlp": mlp, "llama": llama, "bert": bert, "gpt2": gpt2}


class Experts(nn.Module):
    """Two stacks of three matrices, as models with experts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(3, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eij,ejk->bk", x, self.up, self.down)
