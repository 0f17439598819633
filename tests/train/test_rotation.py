"""Seeds that train and validate on their own rows, in one pack; and validation values that decide, cross-fitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise.lora.config import LoRAConfig
from rankwise.pack.losses import PerAdapter
from rankwise.pack.member import Member
from rankwise.pack.pack import Pack
from rankwise.tasks.text.train.built_task import _by_length  # pyright: ignore[reportPrivateUsage]
from rankwise.train.data.cuts import Rotation, half_of, pooled
from rankwise.train.data.feed import Feed
from rankwise.train.data.tensors import take
from rankwise.train.evaluation import evaluate_rows
from rankwise.train.loop import PackTraining
from rankwise.train.outcome import Outcome
from rankwise.train.settings import Training


def make_model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3), nn.LogSoftmax(dim=-1)
        return nn.Sequential(*layers).double()


def make_data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    # A third of the labels are noise, so that runs overfit and the epochs of the halves differ.
    noise = torch.randint(3, (n,), generator=g)
    return x, torch.where(torch.rand(n, generator=g) < 0.33, noise, x[:, :3].argmax(1))


TRAIN, VALIDATION, ROTATION = pooled(make_data(26, 0), make_data(9, 1))


def loss(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return F.nll_loss(outputs, batch[1], reduction="none")


def accuracy(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return (outputs.argmax(-1) == batch[1]).double()


def run(name: str, r: int | None = 2, seed: int = 0, **settings: Any) -> tuple[Member, Training]:
    """r None trains the layers in full."""
    whole = () if r else ("0", "3")
    lora = LoRAConfig(r=r, seed=seed) if r else None
    training = Training(**{"lr": 3e-2, "batch_size": 8, "epochs": 8, **settings})
    return Member(name=name, seed=seed, lora=lora, modules_to_save=whole), training


def training_of(runs: Sequence[tuple[Member, Training]], rotation: Rotation | None = ROTATION, **given: Any) -> Any:
    data = (TRAIN, VALIDATION) if rotation is None else (rotation.pool, rotation.pool)
    cut = None if rotation is None else rotation.cut
    return PackTraining(make_model(), runs, *data, loss, accuracy, cut=cut, **given)


def outcomes_of(training: PackTraining) -> dict[str, Outcome]:
    found: list[Outcome] = []
    while not training.done:
        epoch = training.advance()
        found += epoch.ended if epoch is not None else []
    return {outcome.name: outcome for outcome in found}


RUNS = [
    run("a0"),
    run("a5", seed=5),
    run("b0", r=4, lr=0.3, patience=1),
    run("b2", r=3, seed=2, epochs=5),
    run("last5", r=1, seed=5, weights="last"),
]


def test_a_rotated_pack_equals_each_run_alone() -> None:
    """Every run leaves at its own time, the last of seed 2 among them."""
    together = outcomes_of(training_of(RUNS))
    for one in RUNS:
        name = one[0].name
        (alone,) = outcomes_of(training_of([one])).values()
        assert (alone.best_step, alone.steps) == (together[name].best_step, together[name].steps)
        for key, value in alone.state.items():
            torch.testing.assert_close(value, together[name].state[key], rtol=1e-10, atol=1e-10)
        if alone.deciding is None:
            assert together[name].deciding is None
        else:
            np.testing.assert_array_equal(alone.deciding, together[name].deciding)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_a_rotated_run_is_one_on_its_rows(seed: int) -> None:
    """As if its own rows had been cut out of the pool by hand."""
    cut = ROTATION.cut(seed)
    rows = [tuple(t[part] for t in ROTATION.pool) for part in (cut.train, cut.validation)]
    one = run("a", seed=seed)
    (by_hand,) = outcomes_of(PackTraining(make_model(), [one], *rows, loss, accuracy)).values()
    (rotated,) = outcomes_of(training_of([one])).values()
    assert by_hand.state.keys() == rotated.state.keys()
    for key, value in by_hand.state.items():
        torch.testing.assert_close(value, rotated.state[key], rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(by_hand.deciding, rotated.deciding)


def test_seeds_are_evaluated_on_their_own_rows() -> None:
    """Whatever the order and size of the parts in which rows pass."""
    model = make_model()
    members = [run("a1", seed=1)[0], run("b0", r=4)[0], run("c1", r=4, seed=1)[0]]
    pack = Pack(model, members, loss)
    rows = torch.stack([ROTATION.cut(seed).validation for seed in pack.seeds])
    backwards = Feed(evaluation_order=lambda data: torch.arange(len(data[0])).flip(0), rows_at_once=6)
    with pack.attached(tuple(t[:2] for t in ROTATION.pool), training=False):
        functions = [PerAdapter(loss, "loss"), PerAdapter(accuracy, "metric")]
        (whole, _), (cut, _) = (
            evaluate_rows(pack, ROTATION.pool, functions, feed, rows) for feed in (Feed(), backwards)
        )
    outputs = model.eval()(ROTATION.pool[0])
    # B = 0: every adapter is the base.
    values = F.nll_loss(outputs, ROTATION.pool[1], reduction="none")
    for k, member in enumerate(pack.members):
        expected = values[ROTATION.cut(member.member.seed).validation]
        torch.testing.assert_close(whole[k], expected)
        torch.testing.assert_close(cut[k], expected)


def test_the_cross_fit_is_a_plain_loop_over_epochs() -> None:
    runs = [run("a0", epochs=5), RUNS[2], run("b5", r=4, seed=5, epochs=3), RUNS[4]]
    for rotation in (None, ROTATION):
        for name, outcome in outcomes_of(training_of(runs, rotation)).items():
            (one,) = [each for each in runs if each[0].name == name]
            if one[1].weights == "last":
                assert outcome.deciding is None
                continue
            np.testing.assert_array_equal(outcome.deciding, slow_cross_fit(one, rotation, outcome.epochs))


def slow_cross_fit(one: tuple[Member, Training], rotation: Rotation | None, epochs: int) -> np.ndarray:
    """Train alone, look at every epoch's rows, choose for each half by the other."""
    seed = one[0].seed
    rows = VALIDATION if rotation is None else tuple(t[rotation.cut(seed).validation] for t in rotation.pool)
    training = training_of([one], rotation)
    losses: list[Tensor] = []
    metrics: list[Tensor] = []
    for _ in range(epochs):
        training.advance()
        states = training.state().states("now") if not training.done else None
        if states is None:
            states = {one[0].name: last_state(one, rotation, epochs)}
        pack = Pack(make_model(), [one[0]], loss, states=states)
        with pack.attached(tuple(t[:2] for t in rows), training=False):
            found = evaluate_rows(pack, rows, [PerAdapter(loss, "loss"), PerAdapter(accuracy, "metric")], Feed())
        losses.append(found[0][0])
        metrics.append(found[1][0])
    half = half_of(len(rows[1]), seed)
    deciding = torch.zeros(len(half), dtype=torch.float64)
    for chosen_by in (half, ~half):
        best = min(range(epochs), key=lambda epoch: float(losses[epoch][chosen_by].mean()))
        deciding[~chosen_by] = metrics[best][~chosen_by]
    return deciding.numpy()


def last_state(one: tuple[Member, Training], rotation: Rotation | None, epochs: int) -> dict[str, Tensor]:
    """The weights after the last epoch, where a run has ended."""
    member, training = one
    longer = Training(**{**vars(training), "epochs": epochs + 1, "patience": None})
    again = training_of([(member, longer)], rotation)
    for _ in range(epochs):
        again.advance()
    return again.state().states("now")[member.name]


def test_the_halves_choose_other_epochs() -> None:
    """Else the tests above could not tell a cross-fit from the best epoch."""
    outcomes, differ = outcomes_of(training_of(RUNS[:2])), list[bool]()
    for member, _ in RUNS[:2]:
        outcome = outcomes[member.name]
        rows = tuple(t[ROTATION.cut(member.seed).validation] for t in ROTATION.pool)
        pack = Pack(make_model(), [member], loss, states={member.name: outcome.state})
        with pack.attached(tuple(t[:2] for t in rows), training=False):
            (best,) = evaluate_rows(pack, rows, [PerAdapter(accuracy, "metric")], Feed())
        assert outcome.deciding is not None
        differ.append(bool((best[0].numpy() != outcome.deciding).any()))
    assert any(differ)


def test_no_row_passes_twice_for_the_cross_fit() -> None:
    passed: list[int] = []

    def counting(outputs: Tensor, batch: Sequence[Tensor]) -> Tensor:
        if not torch.is_grad_enabled():
            passed.append(len(outputs))
        return accuracy(outputs, batch)

    pack = PackTraining(make_model(), RUNS[:1], TRAIN, VALIDATION, loss, counting)
    pack.advance()
    # Looked at once to see what the metric returns: whole, the first row, every second.
    passed.clear()
    pack.advance()
    assert sum(passed) == 9


@pytest.mark.parametrize("rotation", [None, ROTATION])
@pytest.mark.parametrize("within", [0, 2])
def test_a_restored_pack_continues_to_equal_bits(rotation: Rotation | None, within: int) -> None:
    """Stopped between two epochs, and in the middle of one."""
    first = training_of(RUNS, rotation)
    ended: dict[str, Outcome] = {}
    for _ in range(3):
        ended |= {outcome.name: outcome for outcome in first.advance().ended}
    if within:
        steps = iter(range(within))
        assert first.advance(lambda: next(steps, None) is None) is None
    again = training_of(RUNS, rotation)
    again.restore(first.state())
    whole = outcomes_of(training_of(RUNS, rotation))
    for name, outcome in (ended | outcomes_of(again)).items():
        assert all(torch.equal(value, whole[name].state[key]) for key, value in outcome.state.items())
        if outcome.deciding is None:
            assert whole[name].deciding is None
        else:
            assert outcome.deciding.tobytes() == whole[name].deciding.tobytes()  # pyright: ignore[reportOptionalMemberAccess]


def test_a_single_validation_row_has_no_halves() -> None:
    one = tuple(t[:1] for t in VALIDATION)
    (outcome,) = outcomes_of(PackTraining(make_model(), RUNS[:1], TRAIN, one, loss, accuracy)).values()
    assert outcome.deciding is None


def test_a_run_that_diverges_has_none() -> None:
    (outcome,) = outcomes_of(training_of([run("a", lr=1e200, epochs=4)])).values()
    assert (outcome.status, outcome.deciding) == ("diverged", None)


def test_texts_of_a_seed_are_ordered_by_length() -> None:
    """Each seed's own rows, once each, those of a batch alike in length."""
    lengths = torch.randint(1, 9, (35,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(8) < lengths.unsqueeze(1)).long()
    rows = torch.stack([ROTATION.cut(seed).train for seed in (0, 7)])
    order = _by_length({"input_ids": mask, "attention_mask": mask}, (0, 7), 0, 2, rows)
    assert order.sort(1).values.equal(rows)
    batches = take(lengths, order.flatten().view(2, -1, 2).flatten(0, 1))
    # The ends of a window may meet; all others are neighbours in length.
    assert int(((batches[:, 0] - batches[:, 1]).abs() <= 1).sum()) >= len(batches) - 2
