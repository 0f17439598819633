"""Batches with gaps in their rows and without: transformers makes a mask for the former only."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
from rankwise.lora.config import LoRAConfig
from rankwise.pack.member import Member
from rankwise.tasks.text.encode.batches import trim
from rankwise.tasks.text.model.calls import find_inputs
from rankwise.tasks.text.train.built_task import with_gap
from rankwise.train.data.feed import Feed, as_given
from rankwise.train.loop import PackTraining
from rankwise.train.settings import Training
from text_models import make_model


def data_of(lengths: list[int]) -> dict[str, Tensor]:
    ids = torch.randint(5, 200, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": torch.arange(max(lengths)).expand_as(ids)}


def losses(ranks: list[int], data: dict[str, Tensor], validation: dict[str, Tensor]) -> list[float]:
    model = make_model("llama").eval()

    def loss(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs.square().mean(-1) * batch["attention_mask"]).sum(-1)

    runs = [
        (Member(name=f"r{r}", lora=LoRAConfig(r=r)), Training(lr=1e-2, batch_size=4, epochs=1, clip=None))
        for r in ranks
    ]
    feed = Feed(
        call=find_inputs(model),
        prepare=trim,
        example=with_gap,
        order=lambda data, seeds, epoch, size, rows: as_given(data).expand(len(seeds), -1),
    )
    epoch = PackTraining(model, runs, data, validation, loss, loss, feed=feed).advance()
    assert epoch is not None
    return [number for point in epoch.points for number in (point.train_loss, point.validation_loss)]


@pytest.mark.parametrize(
    "lengths", [[5, 5, 3, 6, 4, 6, 6, 5], [3, 5, 4, 6, 6, 6, 6, 6]], ids=["first two alike", "a batch without gaps"]
)
def test_a_pack_is_as_each_alone_whatever_the_first_rows(lengths):
    data, validation = data_of(lengths), data_of([6, 6])
    together = losses([2, 4], data, validation)
    assert together == pytest.approx(losses([2], data, validation) + losses([4], data, validation), rel=1e-5)
