"""A sweep: packs by what can share one, every run measured, an interrupt keeps what had finished."""

from typing import Any

import numpy as np
import pytest
import torch

from rankwise.errors import TargetError
from rankwise.sweeps.measure import measure_base
from rankwise.sweeps.plan.plan import plan_packs
from rankwise.sweeps.run.run import run_sweep
from rankwise.train import loop
from rankwise.train.events import Observers
from small_sweep import accuracy, loss, results_of, small_model, small_problem, small_run, small_runs, swept


def test_packs_hold_what_can_be_trained_together() -> None:
    runs = [small_run("r1"), small_run("full"), small_run("r4", batch_size=16), small_run("r8", seed=3)]
    assert [[run.configuration for run in pack] for pack in plan_packs(runs)] == [["r1", "r8"], ["full"], ["r4"]]


def test_every_run_is_measured() -> None:
    runs, problem = small_runs(), small_problem()
    found = swept(runs)
    assert found.complete
    assert found.scores.keys() == found.outcomes.keys() == {run.name for run in runs}
    assert found.parameters["r4-lr0.03-s0"] == 4 * (6 + 8 + 8 + 3)
    assert found.parameters["full-lr0.03-s0"] == 83
    # By hand: the base with the adapter's product added.
    state, model = found.outcomes["r4-lr0.03-s1"].state, small_model()
    for layer in ("0", "2"):
        model.get_submodule(layer).weight.data += 8.0 * state[f"{layer}.B"] @ state[f"{layer}.A"]
    for split in ("validation", "test"):
        data = getattr(problem.splits["data"], split)
        expected = accuracy(model(data[0]), data).numpy()
        np.testing.assert_array_equal(getattr(found.scores["r4-lr0.03-s1"], split), expected)
    data = problem.splits["data"].validation
    assert found.scores["r4-lr0.03-s1"].validation_loss == pytest.approx(loss(model(data[0]), data).mean().item(), 1e-4)


def test_a_diverged_run_has_no_score() -> None:
    found = swept([small_run("r1"), small_run("r4", lr=1e30)])
    assert found.complete
    assert found.outcomes["r4-lr1e+30-s0"].status == "diverged"
    assert [*found.scores] == ["r1-lr0.03-s0"]
    assert np.isfinite(found.scores["r1-lr0.03-s0"].validation).all()


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupt_keeps_what_had_finished(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the epoch after this one is evaluated."""
    runs = [small_run("r1", epochs=2), small_run("r4", epochs=5)]
    problem, evaluated, evaluate = small_problem(), list[int](), loop.evaluate_rows

    def counted(*args: Any) -> list[torch.Tensor]:
        evaluated.append(1)
        return evaluate(*args)

    def interrupting(outputs: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if len(evaluated) == epoch + 1:
            evaluated.append(1)
            raise KeyboardInterrupt
        return accuracy(outputs, batch)

    monkeypatch.setattr(loop, "evaluate_rows", counted)

    model = small_model()
    found = run_sweep(model, runs, type(problem)(problem.splits, loss, interrupting), Observers())
    assert not found.complete
    assert [*found.scores] == ([] if epoch == 1 else ["r1-lr0.03-s0"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small_model().parameters(), strict=True))


def test_a_wrong_target_is_told_before_anything_is_trained() -> None:
    from dataclasses import replace

    run = small_run("r1")
    wrong = replace(run, member=replace(run.member, lora=replace(run.member.lora, target_modules="q_proj")))
    with pytest.raises(TargetError, match="q_proj"):
        swept([wrong])


def test_the_base_is_measured_as_it_is() -> None:
    model, problem = small_model().train(), small_problem()
    data = problem.splits["data"].test
    assert measure_base(model, problem, data) == accuracy(model(data[0]), data).mean().item()
    assert model.training


def test_the_same_sweep_gives_the_same_results() -> None:
    one, other = (results_of(swept(small_runs()[:4])) for _ in range(2))
    for results in (one, other):
        for run in results["runs"]:
            del run["seconds"]
    assert one == other
