"""Packs with as many seeds as adapters: a step repeats no rows then, an evaluation does, and both must be right."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rankwise.lora.config import LoRAConfig
from rankwise.pack.losses import PerAdapter
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from text_models import CONFIGS, make_model

Batch = Mapping[str, Tensor]


class Blocks(nn.Module):
    """An embedding, two blocks, and an end that reads the batch again: `read` says how."""

    def __init__(self, read: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 2)
        self.read = read

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        first = h = self.embed(input_ids)
        for block in self.blocks:
            h = h + block(h).tanh()
        return self.head(self.read(h, attention_mask, first))


def mean_over_the_mask(h: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return (h * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def last_token(h: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return h[torch.arange(len(mask)), mask.sum(1) - 1]


def beside_its_input(h: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return (h + first).mean(1)


def without_the_batch(h: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    return h.mean(1)


def classifier(kind: str) -> nn.Module:
    config = CONFIGS[kind]()
    config.num_labels = 2
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()


def language_model(kind: str) -> nn.Module:
    return make_model(kind, "eager")


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f.__name__: lambda f=f: Blocks(f) for f in (mean_over_the_mask, last_token, beside_its_input)},
    without_the_batch.__name__: lambda: Blocks(without_the_batch),
    "Llama classifier": lambda: classifier("llama"),
    "GPT-2 classifier": lambda: classifier("gpt2"),
    "BERT classifier": lambda: classifier("bert"),
    "Llama": lambda: language_model("llama"),
}


OF_TRANSFORMERS = ("Llama classifier", "GPT-2 classifier", "BERT classifier", "Llama")


def call(model: nn.Module, batch: Any) -> Tensor:
    outputs: Any = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    outputs = getattr(outputs, "logits", outputs)
    if outputs.dim() == 3:  # as the task sft does: of the rows' tokens only those that count
        return (outputs.mean(-1) * batch["attention_mask"]).sum(1, keepdim=True).expand(-1, 2)
    return outputs


def row_loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch["labels"], reduction="none")


def batch_of(rows: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 6, (rows, 1), generator=g)
    mask = (torch.arange(6) < lengths).long()
    ids = torch.randint(3, 9, (rows, 6), generator=g)
    return {
        "input_ids": torch.where(mask.bool(), ids, 2),
        "attention_mask": mask,
        "labels": torch.randint(2, (rows,), generator=g),
    }


def member(rank: int, seed: int) -> Member:
    lora = LoRAConfig(r=rank, seed=seed, target_modules=r"re:(.*\.)?(blocks|layers|h|layer)\..*")
    return Member(name=f"r{rank}-s{seed}", seed=seed, lora=lora)


def trained(model: nn.Module, members: list[Member], stay: list[str]) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Losses and tensors of each after two steps, an evaluation and a step, before which all but `stay` leave."""
    pack = Pack(model, members, row_loss, call=call)
    example = batch_of(2, 99)
    evaluated: list[Tensor] = []
    for epoch, steps in enumerate((2, 1)):
        with pack.attached(example, training=True):
            for step in range(steps):
                own = [batch_of(3, 100 * epoch + 10 * step + seed) for seed in pack.seeds]
                batch = {key: torch.stack([b[key] for b in own]) for key in own[0]}
                pack.step(batch, torch.full((len(pack),), 1e-2), None, None)
        with pack.attached(example, training=False):
            values, _ = pack.evaluate(batch_of(5, 7), [PerAdapter(row_loss, "loss")])[0]
            evaluated = list(values)
        names = [m.member.name for m in pack.members]
        if epoch == 0 and not set(names) <= {*stay}:
            pack.keep(torch.tensor([name in stay for name in names]))
    names = [m.member.name for m in pack.members]
    states = pack.states()
    return {name: (values, states[name]) for name, values in zip(names, evaluated, strict=True)}


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [*((kind, (2, 3)) for kind in MODELS), *((kind, (2,)) for kind in MODELS if kind not in OF_TRANSFORMERS)],
)
def test_one_rank_with_several_seeds_trains_and_evaluates_each_as_alone(kind: str, ranks: tuple[int, ...]) -> None:
    """Of two ranks one leaves after the first epoch, so that the same is left."""
    torch.manual_seed(0)
    model = MODELS[kind]().double()
    members = [member(rank, seed) for rank in ranks for seed in (0, 1, 2)]
    stay = [m.name for m in members if m.lora is not None and m.lora.r == 2]
    together = trained(model, members, stay)
    assert [*together] == stay
    for own in members[::2]:
        if own.name in stay:
            losses, tensors = trained(model, [own], stay)[own.name]
            torch.testing.assert_close(together[own.name][0], losses)
            torch.testing.assert_close(together[own.name][1], tensors)
