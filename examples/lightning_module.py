"""LoRA with Lightning: the LightningModule needs no line about LoRA; `inject` is called on its model.

pip install lightning
python examples/lightning_module.py
"""

import tempfile
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rankwise import LoRAConfig, inject, save_adapter
from rankwise.tasks.digits.digits import NEW, OLD, make_model, select_digits
from rankwise.tasks.digits.mnist import Split, load_digits_data


class Digits(lightning.LightningModule):
    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.nll_loss(self.model(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.model(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]  # with LoRA: A and B
        return torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)


def loader(split: Split, digits: range, size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*select_digits(split, digits, torch.device("cpu"))), size, shuffle=size == 64)


def trainer(epochs: int) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, **quiet)


def main() -> dict[str, float]:
    torch.manual_seed(0)
    data, model = load_digits_data("embedded"), make_model()
    trainer(2).fit(Digits(model, lr=1e-3), loader(data.train, OLD, 64))

    inject(model, LoRAConfig(r=4))
    module, test = Digits(model, lr=3e-3), loader(data.validation, NEW, 1000)
    before = trainer(1).test(module, test, verbose=False)[0]["accuracy"]
    trainer(3).fit(module, loader(data.train, NEW, 64))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
    return {"base": before, "adapted": trainer(1).test(module, test, verbose=False)[0]["accuracy"]}


if __name__ == "__main__":
    print(main())
