"""Cut adapters in a sweep: scored as trained ones are, judged by the same rule, saved where one is to be shipped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from msgspec import UNSET
from torch import Tensor, nn

import rankwise
from rankwise import Training
from rankwise.errors import ConfigError
from rankwise.report import answer_words
from rankwise.report.cut.cut_table import cut_markdown, cut_rows
from rankwise.results import Results, read_results
from rankwise.sweeps.problem import Scores
from rankwise.sweeps.squeezing.shipping import JudgedShipping
from small_sweep import accuracy, loss, small_model, some_data

GIVEN: dict[str, Any] = {
    "loss": loss,
    "metric": accuracy,
    "metric_name": "accuracy",
    "training": Training(batch_size=32, epochs=6),
    "lrs": 0.03,
    "plan": "grid",
    "progress": "quiet",
    "seeds": 3,
    "train": some_data(200, 0),
    "validation": some_data(300, 1),
    "test": some_data(150, 2),
}


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> rankwise.Sweep:
    """A sweep in which smaller ranks learn nothing, and cut ones lie within a wide tolerance."""
    out = tmp_path_factory.mktemp("squeezed") / "out"
    idle = Training(lr=1e-5, batch_size=32, epochs=1)
    return rankwise.sweep(small_model(), {"r2": (2, idle), "r4": (4, idle), "r6": 6}, **GIVEN, tolerance=0.15, out=out)


def test_they_score_as_the_model_with_the_adapter_does(shipped: rankwise.Sweep) -> None:
    compressed, cut = shipped.results.compressed, shipped.swept.compressed
    assert compressed
    assert cut is not None
    assert [c.name for c in compressed.configurations] == ["r6-to-r2", "r6-to-r4"]
    x, y = GIVEN["test"]
    for run in cut.runs:
        model = small_model()
        shipped.put_on(model, run.name)
        hits = accuracy(outputs(model, x), (x, y))
        np.testing.assert_array_equal(cut.scores[run.name].test, hits.numpy())
    means = {c.name: c.mean for c in compressed.configurations}
    of_r2 = [cut.scores[run.name].test.mean() for run in cut.runs if run.configuration == "r6-to-r2"]
    assert means["r6-to-r2"] == pytest.approx(np.mean(of_r2))
    assert [c.parameters for c in compressed.configurations] == [2 * (6 + 8 + 8 + 3), 4 * (6 + 8 + 8 + 3)]


def test_the_one_to_ship_is_saved_in_pefts_format(shipped: rankwise.Sweep) -> None:
    compressed, directory = shipped.results.compressed, shipped.directory
    assert compressed
    assert compressed.ship
    assert directory is not None
    assert compressed.ship.verdict == "shown"
    chosen = next(c for c in compressed.configurations if c.is_answer)
    (run,) = (run for run in chosen.runs if run.adapter)
    assert (directory / "ship").resolve() == (directory / run.adapter).resolve()
    ours, x = small_model(), GIVEN["test"][0]
    shipped.put_on(ours, run.name)
    theirs = peft.PeftModel.from_pretrained(small_model(), directory / run.adapter)
    torch.testing.assert_close(outputs(theirs, x), outputs(ours, x), rtol=0, atol=1e-6)
    again = read_results(directory)
    assert again.compressed == compressed
    assert f"To ship: {chosen.label}, {chosen.parameters} parameters" in answer_words(again)
    assert f"**{chosen.label}, to ship**" in cut_markdown(again)
    saved = np.load(directory / "predictions.npz")
    assert {f"compressed/test/{one.name}" for c in compressed.configurations for one in c.runs} <= {*saved}


def test_results_are_replaced_with_the_cut_adapter(shipped: rankwise.Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = {**GIVEN, "train": some_data(60, 0), "tolerance": 0.5, "seeds": 2, "training": Training(epochs=1)}
    rankwise.sweep(small_model(), [1, 2], **few, baseline=False, out=out)
    rankwise.sweep(small_model(), [1, 2], **few, baseline=False, out=out, overwrite=True, compressed=False)
    assert not (out / "ship").exists()
    assert "compressed" not in json.loads((out / "results.json").read_text())
    assert all("-to-" not in path.name for path in (out / "adapters").iterdir())


def test_what_is_no_longer_there_is_named(tmp_path: Path) -> None:
    def swept(seeds: int) -> Results:
        settings = {**GIVEN, "training": Training(batch_size=32, epochs=1), "seeds": seeds}
        return rankwise.sweep(small_model(), [2, 4], **settings, out=tmp_path / "run", resume=True).results

    cut = swept(1).compressed
    assert cut is not None
    shutil.rmtree(tmp_path / "run" / "adapters" / "r4-lr0.03-s0")
    found = swept(2)
    assert found.compressed is not None
    assert [run.trained for run in found.compressed.configurations[0].runs] == ["r4-lr0.03-s1"]
    assert "r4-lr0.03-s0 of the earlier sweep was not cut to smaller ranks" in " ".join(found.notes)


def test_what_was_cut_is_left_out(shipped: rankwise.Sweep) -> None:
    found = rankwise.sweep(small_model(), [2, 4], **{**GIVEN, "seeds": 2}, compressed=False)
    assert found.results.compressed is UNSET
    assert "ship" not in answer_words(found.results)
    assert not cut_markdown(found.results)


def test_a_short_repair(shipped: rankwise.Sweep) -> None:
    steps = 9
    found = rankwise.sweep(small_model(), [2, 6], **GIVEN, squeeze_steps=steps)
    compressed = found.results.compressed
    assert compressed
    assert compressed.steps == steps
    (c,) = compressed.configurations
    assert c.mean is not None
    assert c.repaired
    assert c.repaired.mean is not None
    assert c.trained_longer
    assert found.swept.compressed is not None
    # A plain loop from the cut adapter: its own optimiser, the rate falling linearly to 0 over the steps.
    run = found.swept.compressed.runs[0]
    model = small_model()
    first = shipped_state(found, "r6-lr0.03-s0", model, run)
    after = trained_alone(model, first, run, steps)
    x, y = GIVEN["test"]
    np.testing.assert_array_equal(found.swept.compressed.scores[run.name].test, accuracy(after, (x, y)).numpy())
    headings = cut_rows(found.results)[0][1]
    assert {"repaired, 9 steps", "trained, 9 steps more"} <= headings.keys()


def shipped_state(found: rankwise.Sweep, trained: str, model: nn.Module, run: Any) -> dict[str, Tensor]:
    from rankwise.sweeps.squeezing.cutting import cut_state

    whole = next(one for one in found.swept.runs if one.name == trained)
    return (cut_state(model, whole.member, found.state(trained), [run.member]) or [])[0]


def trained_alone(model: nn.Module, state: dict[str, Tensor], run: Any, steps: int) -> Tensor:
    """The outputs on test data after some steps of torch's own AdamW."""
    from rankwise.sweeps.attaching import put_on
    from rankwise.train.data.feed import Feed

    put_on(model, run, state, "default")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=0.03, weight_decay=0.0)
    x, y = GIVEN["train"]
    done, epoch = 0, 0
    while done < steps:
        order = Feed().order((x, y), [run.member.seed], epoch, 32, None)[0]
        for rows in order.split(32)[: steps - done]:
            optimiser.param_groups[0]["lr"] = 0.03 * (1 - done / steps)
            optimiser.zero_grad()
            loss(model(x[rows]), (x[rows], y[rows])).mean().backward()
            optimiser.step()
            done += 1
        epoch += 1
    return outputs(model.eval(), GIVEN["test"][0])


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="squeeze_steps is 0; give a number of steps of at least 1"):
        rankwise.sweep(small_model(), [1, 2], **GIVEN, squeeze_steps=0)
    with pytest.raises(ConfigError, match="compressed ones are to be left out"):
        rankwise.sweep(small_model(), [1, 2], **GIVEN, compressed=False, squeeze_steps=5)


def test_the_luck_of_the_epoch_is_taken_off(shipped: rankwise.Sweep) -> None:
    """Where choosing the epoch flattered the larger adapter, so much less is shown of the cut one."""
    from rankwise.sweeps.choose.rule import Rule, parse_tolerance
    from rankwise.sweeps.judged import Choice, JudgedSweep
    from small_sweep import small_problem

    swept, cut = shipped.swept, shipped.swept.compressed
    assert cut is not None
    larger = {run.name: next(r for r in swept.runs if r.name == f"r6-lr0.03-s{run.member.seed}") for run in cut.runs}

    def p_within(flattered: float) -> float | None:
        """P(within) of r6-to-r4 where so large a share of the larger adapter's rows was right by luck."""
        n = 300
        hits, lucky = np.ones(n), np.ones(n)
        lucky[: round(flattered * n)] = 0.0
        scores = {
            run.name: Scores(hits, 0.0, hits[:5], {}, deciding=lucky if run.configuration == "r6" else None)
            for run in [*swept.runs, *cut.runs]
        }
        of = [
            type(swept)(s.runs, s.parameters, outcomes=s.outcomes, scores=scores, complete=True) for s in (swept, cut)
        ]
        judged = JudgedSweep(of[0], small_problem(), Rule(parse_tolerance(0.05, True), True), Choice())
        found = {c.name: comparison for c, comparison in JudgedShipping(judged, of[1], larger).comparisons}
        return found["r6-to-r4"].p_within

    assert (p_within(0.0) or 0) > 0.95
    assert (p_within(0.1) or 0) < 0.5
