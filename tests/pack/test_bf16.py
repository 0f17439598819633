"""bfloat16 mixed precision: products rounded once, sums in float32, each adapter as alone."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.layers.half import HalfProduct, Halves
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from small_models import KINDS, call

WIDTH = 16


class Model(nn.Module):
    """Three layers that read one input, one that nothing adapts, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=i > 0) for i in range(3))
        self.norm, self.frozen, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        x = x + F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(self.frozen(self.norm(x)).relu().mean(1))


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs, batch[1], reduction="none")


def gradients(
    model: nn.Module, members: Sequence[Member], batch: tuple[Tensor, Tensor], precision: str
) -> tuple[Pack, dict[str, Tensor]]:
    pack = Pack(model, members, loss, precision=precision)
    with pack.attached(batch, training=True):
        pack.store.randomise()
        pack.gradients(tuple(t.unsqueeze(0) for t in batch))
    states = pack.store.read(pack.store.grads)
    return pack, {f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.items()}


MEMBERS = {
    "ranks": [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["q", "v", "out"])) for r in (1, 4, 9)],
    "dropout": [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["q"], dropout=0.3)) for r in (1, 4)],
    "whole": [Member(name=f"m{i}", modules_to_save=("words", "q", "norm", "out")) for i in range(2)],
    "head": [
        Member(name="one", lora=LoRAConfig(r=2, target_modules=["q", "k"]), modules_to_save=("out",)),
        Member(name="two", lora=LoRAConfig(r=2, target_modules=["q"])),
    ],
    "embedding": [Member(name=f"m{i}", lora=LoRAConfig(r=2, target_modules=["words", "k"])) for i in range(2)],
    "dora": [Member(name=f"m{i}", lora=LoRAConfig(r=2, target_modules=["q", "k"], variant="dora")) for i in range(2)],
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_pack_is_its_adapters_alone_and_near_float32(kind: str) -> None:
    torch.manual_seed(0)
    model, members = Model(), MEMBERS[kind]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = torch.randint(20, (6, 5)), torch.randint(3, (6,))
    pack, ours = gradients(model, members, batch, "bf16")
    assert not pack.notes
    _, exact = gradients(model, members, batch, "float32")
    alone = {key: t for member in members for key, t in gradients(model, [member], batch, "bf16")[1].items()}
    norm = torch.stack([t.norm() for t in exact.values()]).norm()
    # Sums of a few products rounded to 8 bits: another order of adding may round them to the other side.
    assert torch.stack([(ours[key] - alone[key]).norm() for key in ours]).norm() < 0.01 * norm
    difference = torch.stack([(ours[key] - exact[key]).norm() for key in ours]).norm()
    assert 1e-5 * norm < difference < 0.06 * norm
    assert all(t.dtype == torch.float32 for t in ours.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_small_updates_are_not_lost_beside_the_frozen_product() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    nn.init.constant_(model[0].weight, 1.0)  # pyright: ignore[reportArgumentType]
    batch = torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.long)
    pack = Pack(model, [Member(name="m", lora=LoRAConfig(r=1, target_modules=["0"], alpha=1))], loss, precision="bf16")
    update = 2.0**-10
    pack.store.theta.copy_(torch.cat([torch.full((WIDTH,), update), torch.full((WIDTH,), 1.0 / WIDTH)]))
    pack.store.refresh()
    seen: list[Tensor] = []
    pack._running._call = lambda model, batch: seen.append(model(batch[0])) or seen[-1]  # pyright: ignore[reportPrivateUsage]
    with pack.attached(batch, training=False), torch.no_grad():
        seen.clear()
        pack.evaluate(batch, [pack.loss])
    plain = model[0](batch[0])
    torch.testing.assert_close(seen[0] - plain, torch.full_like(plain, update), rtol=1e-2, atol=0)


@pytest.mark.parametrize("targets", [("0", "0"), ("1", "1"), ("[01]", "[01]"), ("[01]", "0"), ("1", "0")])
@pytest.mark.parametrize("ranks", [(2, 2), (1, 9)])
def test_a_bias_is_added_once_and_not_rounded(targets: tuple[str, str], ranks: tuple[int, int]) -> None:
    """Where all adapters have an update in a layer, in one bucket or two; where one has none; where they share x."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    for layer in model:
        nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(layer.bias, 1 + 2.0**-20)  # pyright: ignore[reportArgumentType]
    members = [
        Member(name=f"m{i}", lora=LoRAConfig(r=r, target_modules=target))
        for i, (r, target) in enumerate(zip(ranks, targets, strict=True))
    ]
    pack, batch = Pack(model, members, loss, precision="bf16"), (torch.randn(4, WIDTH), torch.zeros(4).long())
    with pack.attached(batch, training=False):
        outputs = pack.outputs(batch)
    assert torch.equal(outputs, torch.full((2, 4, WIDTH), 1 + 2.0**-20))


def test_an_input_is_rounded_once_for_all_that_read_it_and_again_once_it_has_changed() -> None:
    halves, x = Halves(), torch.ones(2, 3)
    first = halves.of(x)
    assert halves.of(x) is first
    assert halves.of(torch.ones(2, 3)) is not first
    x += 1
    assert torch.equal(halves.of(x), torch.full((2, 3), 2.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "convolutional"])
def test_models_of_all_kinds_run_in_one_pack(kind: str) -> None:
    made = KINDS[kind]
    torch.manual_seed(0)
    model, batch = made.make(), made.batch(0)
    members = [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=made.targets[0])) for r in (1, 8)]
    for precision in ("float32", "bf16"):
        pack = Pack(model, members, made.loss, call=call, precision=precision)
        with pack.attached(batch, training=True):
            pass
        assert not pack.notes


def test_the_frozen_product_has_the_gradient_of_its_definition() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    W, b = torch.randn(5, 4), torch.randn(5)
    half = W.bfloat16()
    y = HalfProduct.apply(x, x.detach().bfloat16(), half, b)
    (dx,) = torch.autograd.grad(y.square().sum(), x)  # pyright: ignore[reportOptionalMemberAccess]
    expected = (x.detach().bfloat16().float() @ half.float().mT).bfloat16().float() + b
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(dx, (2 * expected).bfloat16().float() @ half.float(), rtol=2e-2, atol=5e-2)
