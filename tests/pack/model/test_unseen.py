"""What the rows on which a model is looked at don't show: a step notices it, and gives what each adapter gets alone."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.errors import PackError
from rankwise.lora.config import LoRAConfig
from rankwise.pack.losses import PerAdapter
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.pack.resolved import AdapterState
from reference import update_difference
from rounding import alike

Changed = Callable[[nn.Module, Tensor], Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


X, Y = numbers(8, 4), torch.arange(8) % 3
X[:, 3] = torch.tensor([0.0, 0, 0, 0, 0, 9, 0, 9], dtype=torch.float64)
"""The last column marks rows; none of the first four is marked."""


class Marked(nn.Module):
    """Two layers; something is done to what the first gives for marked rows."""

    def __init__(self, change: Changed, *, always: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.head = nn.Linear(3, 6), nn.Linear(6, 3)
        self.register_buffer("code", torch.zeros(6))
        self.shift = nn.Parameter(torch.zeros(6))
        self._change, self._always = change, always
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x[:, :3])
        marked = (x[:, 3] == 9).nonzero().flatten()
        if len(marked) and (self.training or self._always):
            h = h.index_put((marked,), self._change(self, h[marked]))
        return self.head(torch.tanh(h))


def members(*ranks: int, dropout: float = 0.1) -> list[Member]:
    return [Member(name=f"r{r}", lora=LoRAConfig(r=r, target_modules=["fc"], dropout=dropout)) for r in ranks]


def trained(
    model: nn.Module, *ranks: int, rows: int | None = None, x: Tensor = X, **how: Any
) -> tuple[dict[str, AdapterState], dict[str, AdapterState], Pack]:
    dropout = how.pop("dropout", 0.1)
    pack = Pack(
        model,
        members(*ranks, dropout=dropout),
        how.pop("loss", lambda o, batch: F.cross_entropy(o, batch[1], reduction="none")),
        **how,
    )
    start, rate = pack.states(), torch.full((len(ranks),), 0.05, dtype=torch.float64)
    with pack.attached((x[:4], Y[:4]), training=True):
        for part in (slice(0, 4), slice(4, 8), slice(0, 4)):
            pack.step((x[part].unsqueeze(0), Y[part].unsqueeze(0)), rate, None, None, rows)
    return start, pack.states(), pack


def assert_as_alone(make: Callable[[], nn.Module], **how: Any) -> Pack:
    _, together, pack = trained(make(), 1, 3, **how)
    torch.rand(7)
    np.random.randn(7)
    random.gauss(0, 1)
    start, alone, _ = trained(make(), 3, **how)
    assert update_difference(together["r3"], alone["r3"], start["r3"]) <= 1e-10
    return pack


DRAWS: dict[str, Changed] = {
    "torch": lambda m, h: h + torch.randn_like(h),
    "dropout": lambda m, h: F.dropout(h, 0.5),
    "numpy": lambda m, h: h * float(np.random.rand()),
    "numpy, a number it has in store": lambda m, h: h * float(np.random.normal()),
    "random": lambda m, h: h * random.random(),
    "random, a number it has in store": lambda m, h: h * random.gauss(1, 0.5),
}


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("name", DRAWS)
def test_noise_that_some_rows_draw(name: str, rows: int | None) -> None:
    pack = assert_as_alone(lambda: Marked(DRAWS[name]), rows=rows)
    assert any("draws random numbers from" in note for note in pack.notes)
    start, noisy, _ = trained(Marked(DRAWS[name]), 3)
    silent = trained(Marked(lambda m, h: h), 3)[1]
    assert update_difference(noisy["r3"], silent["r3"], start["r3"]) > 1e-3


def test_noise_that_some_rows_draw_in_eval_mode_is_refused() -> None:
    pack = Pack(Marked(DRAWS["torch"], always=True), members(1, 2), lambda o, batch: F.cross_entropy(o, batch[1]))
    metric = PerAdapter(lambda o, batch: o.sum(1), "metric")
    with pack.attached((X[:4], Y[:4]), training=False), pytest.raises(PackError, match="from torch in eval mode"):
        pack.evaluate((X, Y), [metric])


def draw_for_nothing(model: nn.Module, h: Tensor) -> Tensor:
    random.getrandbits(32)
    return h


@pytest.mark.parametrize("change", [DRAWS["random"], draw_for_nothing])
def test_pythons_generator_in_eval_mode(change: Changed) -> None:
    """Checkers of types draw from it, and no output depends on that."""
    pack = Pack(Marked(change, always=True), members(1, 2), lambda o, batch: F.cross_entropy(o, batch[1]))
    plain = Pack(Marked(lambda m, h: h), members(1, 2), lambda o, batch: F.cross_entropy(o, batch[1]))
    metric = PerAdapter(lambda o, batch: o.sum(1), "metric")
    with pack.attached((X[:4], Y[:4]), training=False), plain.attached((X[:4], Y[:4]), training=False):
        if change is not draw_for_nothing:
            with pytest.raises(PackError, match="from random in eval mode"):
                pack.evaluate((X, Y), [metric])
            return
        assert alike(pack.evaluate((X, Y), [metric])[0][0], plain.evaluate((X, Y), [metric])[0][0])


@torch.no_grad()
def move_buffer(model: Any, h: Tensor) -> Tensor:
    model.code.lerp_(h.mean(0), 0.1)
    return h


def assign_buffer(model: Any, h: Tensor) -> Tensor:
    model.code = model.code + h.detach().mean(0)
    return h


@torch.no_grad()
def move_parameter(model: Any, h: Tensor) -> Tensor:
    model.shift.add_(h.mean(0))
    return h


@pytest.mark.parametrize(
    ("change", "what"),
    [(move_buffer, 'buffer "code"'), (assign_buffer, 'buffer "code"'), (move_parameter, 'parameter "shift"')],
)
def test_what_some_rows_write_to_is_put_back_and_named(change: Changed, what: str) -> None:
    model = Marked(change)
    with pytest.raises(PackError, match=what):
        trained(model, 1, 2)
    assert not model.get_buffer("code").any()
    assert not model.shift.any()


class Large(Marked):
    """It has a table too large to be remembered, of which one row is written to through `.data`."""

    def __init__(self, change: Changed) -> None:
        super().__init__(change)
        self.table = nn.Parameter(torch.ones(300, 300))


def write_through_data(model: Any, h: Tensor) -> Tensor:
    model.table.data[17, 5] *= 1.0001
    return h


def test_a_write_through_data_is_seen_at_the_end_of_the_block() -> None:
    with pytest.raises(PackError, match=r'changes the parameter "table" .* too large to have been put back'):
        trained(Large(write_through_data), 1, 2)


class InParts(Marked):
    """Marked rows pass through the adapted layer by themselves."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x[:, 3] == 9).any():
            return super().forward(x)
        h = torch.cat([self.fc(x[:1, :3]), self.fc(x[1:, :3])])
        return self.head(torch.tanh(h))


def test_a_layer_that_gets_a_part_of_the_rows_in_some_batches() -> None:
    pack = assert_as_alone(lambda: InParts(lambda m, h: h))
    assert any('"fc" gets a part of the rows' in note for note in pack.notes)


def hooked(register: str) -> nn.Module:
    model = Marked(lambda m, h: h)

    def noise(module: nn.Module, args: tuple[Tensor], output: Tensor | None = None) -> Any:
        if not module.training:
            return None
        return (args[0] + 0.1 * torch.randn_like(args[0]),) if output is None else output + torch.randn_like(output)

    getattr(model, register)(noise)
    return model


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
def test_noise_in_hooks_of_the_model_itself(register: str) -> None:
    assert_as_alone(lambda: hooked(register))


def test_noise_beside_the_model() -> None:
    def call(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0] + 0.3 * torch.randn_like(batch[0]) * model.training)

    assert_as_alone(lambda: Marked(lambda m, h: h), call=call)


ALL = X.clone().index_fill_(1, torch.tensor([3]), 9.0)
"""Every row is marked."""

EXPERT = int(Marked(lambda m, h: h).fc(ALL[0, :3]).argmax())


def groups_of_eight(model: nn.Module, h: Tensor) -> Tensor:
    return torch.cat([c - c.mean(0) if len(c) == 8 else c for c in h.split(8)])


def room_for_half(model: nn.Module, h: Tensor) -> Tensor:
    """An expert, the first row's, that has room for half of the rows."""
    chosen = (h.argmax(1) == EXPERT).nonzero().flatten()
    return h.index_fill(0, chosen[(len(h) + 1) // 2 :], 0.0)


@pytest.mark.parametrize("change", [groups_of_eight, room_for_half])
def test_rows_that_mix_where_there_are_many_are_refused(change: Changed) -> None:
    with pytest.raises(PackError, match="in training they are mixed"):
        trained(Marked(change), 1, 2, x=ALL)


def of_the_batch(m: nn.Module, h: Tensor) -> Tensor:
    return nn.functional.batch_norm(h, None, None, training=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_the_batch, r"computes \d+ rows together, and one alone not"),
        (lambda m, h: h + 0 * h[1], r"computes \d+ rows together, and one alone not"),
        (lambda m, h: h.unflatten(0, (2, -1)).flatten(0, 1), "can't run on 3 rows"),
        (lambda m, h: h.view(-1, 12).view(-1, 6), "can't run on 3 rows"),
        (lambda m, h: h + 0 * h[3], "can't run on 2 rows"),
    ],
    ids=["statistics", "second row", "unflatten", "view", "fourth row"],
)
def test_numbers_of_rows_that_can_t_run_are_refused_in_words_of_rankwise(change: Changed, words: str) -> None:
    with pytest.raises(PackError, match=f"^The model {words}, in the Marked's own forward") as raised:
        trained(Marked(change), 1, 2, x=ALL)
    assert not any(word in str(raised.value) for word in ("Expected", "Provided", "invalid", "out of bounds"))


def test_a_step_that_uses_no_adapted_layer_moves_nothing() -> None:
    class Skips(Marked):
        def forward(self, x: Tensor) -> Tensor:
            skipped = self.training and torch.rand([]) < 0.5
            return self.head(torch.tanh(x.new_zeros(len(x), 6) if skipped else self.fc(x[:, :3])))

    assert_as_alone(lambda: Skips(lambda m, h: h))


def test_outputs_without_a_gradient_are_refused() -> None:
    class Detached(Marked):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.fc(x[:, :3]).detach())

    with pytest.raises(PackError, match="no adapted layer has a part in them"):
        trained(Detached(lambda m, h: h), 1, 2)


def calls_backward(model: Any, h: Tensor) -> Tensor:
    x = numbers(len(h), 3).requires_grad_()
    with torch.enable_grad():
        model.fc(x).square().sum().backward()
    return h * torch.sigmoid(h)


def maps_dropout(model: Any, h: Tensor) -> Tensor:
    return h + torch.func.vmap(lambda row: model.fc(row[None, :3]).squeeze(0))(h)


@pytest.mark.parametrize(
    ("change", "dropout", "message"),
    [
        (calls_backward, 0.0, "calls backward inside its own forward"),
        (maps_dropout, 0.1, r"Dropout acts inside torch\.func"),
    ],
)
def test_known_mistakes_are_one_line(change: Changed, dropout: float, message: str) -> None:
    with pytest.raises(PackError, match=message) as caught:
        trained(Marked(change), 1, 2, x=ALL, dropout=dropout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, b: F.cross_entropy(o + torch.randn_like(o), b[1], reduction="none"),
        lambda o, b: F.cross_entropy(o * float(np.random.rand()), b[1]),
    ],
)
def test_a_loss_that_draws_is_refused(loss: Any) -> None:
    with pytest.raises(PackError, match="The loss draws random numbers from"):
        trained(Marked(lambda m, h: h), 1, 2, loss=loss)


def test_a_mean_that_leaves_rows_out_is_refused_in_the_step_where_it_does() -> None:
    def loss(o: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(o, batch[1].masked_fill(batch[0][:, 3] == 9, -100))

    trained(Marked(lambda m, h: h), 1, 2, loss=loss)
    with pytest.raises(PackError, match="it is no mean of rows"):
        trained(Marked(lambda m, h: h), 1, 2, loss=loss, rows=3)


@pytest.mark.parametrize("alpha", [0.5, 32.0, 4096.0])
def test_the_probes_random_updates_are_a_small_part_of_a_weight(alpha: float) -> None:
    """Larger ones saturate attention, and rounding is read as a fault."""
    model = nn.Sequential(nn.Linear(64, 48))
    chosen = [Member(name=f"r{r}", lora=LoRAConfig(r=r, alpha=alpha)) for r in (1, 8)]
    pack = Pack(model, chosen, lambda o, batch: o.sum(1))
    pack.store.randomise()
    for i, _ in enumerate(chosen):
        A, B = pack.store.low_rank(i, "0", exact=True)
        assert 0.001 < float((B[0] @ A[0]).norm() / model.get_parameter("0.weight").detach().norm()) < 0.5
