"""Files of adapters whose modules' names end in each other, or share their weight."""

from pathlib import Path

import torch
from torch import nn

from rankwise import LoRAConfig, inject, load_adapter, save_adapter


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mid, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(self.embed(ids)))


def trained(model: nn.Module, config: LoRAConfig) -> nn.Module:
    base = set(model.state_dict())
    inject(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in base:
                parameter.add_(torch.rand_like(parameter))
    return model.eval()


def test_an_alpha_of_its_own_for_a_tied_weight(tmp_path: Path) -> None:
    config = LoRAConfig(r=4, alpha=8, target_modules=["embed", "mid"], alpha_pattern={"embed": 16})
    model = trained(Tied(), config)
    save_adapter(model, tmp_path)
    again = Tied()
    load_adapter(again, tmp_path)
    ids = torch.arange(7)
    torch.testing.assert_close(again.eval()(ids), model(ids))


def test_a_module_whose_name_ends_anothers(tmp_path: Path) -> None:
    """As in torchvision's models for segmentation."""

    def make() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("body", "classifier", "aux_classifier")})

    model = trained(make(), LoRAConfig(r=2, target_modules=["body"], modules_to_save=["classifier"]))
    save_adapter(model, tmp_path)
    again = make()
    load_adapter(again, tmp_path)
    x = torch.ones(1, 4)
    for name in ("body", "classifier", "aux_classifier"):
        torch.testing.assert_close(again.eval()[name](x), model[name](x))
