"""A finished sweep with seeds and configurations added comes to what it would have come to with them at once."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import UNSET
from torch import Tensor, nn

import rankwise
from rankwise import Training
from rankwise.errors import CheckpointError, ConfigError
from rankwise.report import answer_words
from rankwise.results import plain
from rankwise.results.outcomes import Leaning
from rankwise.sweeps.plan.probing import Probe
from rankwise.sweeps.record import add_next
from rankwise.sweeps.run import stages
from rankwise.sweeps.storage import directory
from rankwise.train import loop
from sample_results import change
from small_sweep import accuracy, loss, small_model, some_data

GIVEN: dict[str, Any] = {
    "loss": loss,
    "metric": accuracy,
    "metric_name": "accuracy",
    "training": Training(lr=1.0, batch_size=16, epochs=2),
    "lrs": (0.01, 0.03),
    "plan": "grid",
    "progress": "quiet",
}


def double(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0].double(), data[1]


DATA = {
    name: double(some_data(n, i)) for i, (name, n) in enumerate({"train": 64, "validation": 60, "test": 40}.items())
}


def sweep(configs: Any = (1, 2), model: nn.Module | None = None, **more: Any) -> rankwise.Sweep:
    return rankwise.sweep(model or small_model().double(), configs, **{**GIVEN, **DATA, **more})


def numbers(found: rankwise.Sweep) -> dict[str, Any]:
    """What two sweeps that trained the same runs must agree on."""
    results = plain(found.results)
    answer = {key: value for key, value in (results["answer"] or {}).items() if key not in ("next", "adapter")}
    configurations = {c["name"]: c for c in results["configurations"]}
    runs = {run["name"]: [run["status"], run["metric"], run["validation_metric"]] for run in results["runs"]}
    compressed = {c["name"]: {**c, "runs": None} for c in results["compressed"]["configurations"]}
    ship = {**results["compressed"]["ship"], "adapter": None}
    return {"answer": answer, "configurations": configurations, "runs": runs, "compressed": compressed, "ship": ship}


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, place)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-10), place
    elif place.endswith(".adapter"):
        assert (found is None) == (expected is None)
    else:
        assert found == expected, place


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "out"
    sweep(seeds=2, out=out)
    return out


@pytest.fixture
def out(grid: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grid, tmp_path / "out"))


@pytest.mark.parametrize(("configs", "seeds"), [((1, 2), 4), ((1, 2, 3), 2), ((1, 2, 3), 3)])
def test_a_grid_with_more_seeds_and_ranks(out: Path, configs: tuple[int, ...], seeds: int) -> None:
    before = {name: data for name, data in files_of(out).items() if name.startswith("adapters")}
    found = sweep(configs, seeds=seeds, out=out, resume=True)
    expected = sweep(configs, seeds=seeds)
    assert_same(numbers(found), numbers(expected))
    after = files_of(out)
    assert {name: after[name] for name in before} == before, "earlier adapters stay as they are, bit for bit"
    assert {
        f"adapters/{run}" for run, one in found.swept.outcomes.items() if one.status == "finished" and run[0] == "r"
    } == {str(Path(name).parent) for name in after if name.startswith("adapters")}
    predictions = np.load(out / "predictions.npz")
    assert {key.partition("/")[2] for key in predictions if key.startswith("test/")} == set(found.swept.outcomes)
    assert not (out / "checkpoints").exists()


def test_only_what_is_missing_is_trained(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, trained = stages.run_sweep, list[str]()

    def noted(model: Any, runs: Any, *args: Any, **given: Any) -> Any:
        trained.extend(run.name for run in runs)
        return real(model, runs, *args, **given)

    monkeypatch.setattr(stages, "run_sweep", noted)
    found = sweep(seeds=2, out=out, resume=True)
    assert trained == []
    sweep(seeds=3, out=out, resume=True)
    assert len(trained) == 6
    assert {name[-3:] for name in trained} == {"-s2"}
    model = small_model().double()
    before = model(DATA["test"][0])
    found.put_on(model, found.results["runs"][0]["name"])
    assert not torch.equal(model(DATA["test"][0]), before), "read from the run directory"
    with pytest.raises(ConfigError, match="was trained by the earlier sweep"):
        found.state(found.results["runs"][0]["name"])


@pytest.mark.parametrize("lrs", [(0.03,), (0.01, 0.03)])
def test_an_adaptive_sweep_with_more_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrs: tuple[float, ...]
) -> None:
    # The price of a further adapter depends on the machine's load; here it is nothing.
    monkeypatch.setattr(stages, "probe", lambda *given: Probe(0.0, 0.0, step=1.0, row=0.0, bytes=0, peak=None))
    adaptive = {"plan": "auto", "lrs": lrs, "curve": True, "tolerance": 0.05}
    sweep((1, 2, 3), seeds=3, out=tmp_path / "out", **adaptive)
    found = sweep((1, 2, 3), seeds=6, out=tmp_path / "out", resume=True, **adaptive)
    expected = numbers(sweep((1, 2, 3), seeds=6, **adaptive))
    extended = numbers(found)
    # What the shorter plan trained and the longer one doesn't ask for stays.
    extended["runs"] = {name: extended["runs"][name] for name in expected["runs"]}
    assert_same(extended, expected)
    assert max(c["n_seeds"] for c in found.results["configurations"]) > 3


def test_an_extension_that_is_interrupted(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(out)
    by_step, calls = loop.PackTraining.by_step, list[int]()

    def interrupted(self: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.PackTraining, "by_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(seeds=3, out=out, resume=True)
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    found = sweep(seeds=3, out=out, resume=True)
    expected = sweep(seeds=3)
    assert_same(numbers(found), numbers(expected))
    assert not (out / "checkpoints").exists()


class Killed(BaseException):
    """Ends a sweep as no exception that it catches does."""


def at_each_placing(act: Callable[[int], None]) -> pytest.MonkeyPatch:
    """`act` is given the number of each file or folder of the results before it is put in place."""
    real, calls = os.replace, list[int]()

    def replace(source: Any, target: Any) -> None:
        staged, at = (any(part.startswith(directory.STAGED) for part in Path(p).parts) for p in (source, target))
        if staged and not at:
            calls.append(1)
            act(len(calls))
        real(source, target)

    patch = pytest.MonkeyPatch()
    patch.setattr(os, "replace", replace)
    return patch


@pytest.fixture(scope="module")
def moments(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory as a kill would leave it before each placing of an extension's results: 1, 2, ..."""
    folder = tmp_path_factory.mktemp("moments")
    out = shutil.copytree(grid, folder / "out")
    patch = at_each_placing(lambda nth: shutil.copytree(out, folder / str(nth), symlinks=True) and None)
    try:
        sweep((1, 2), seeds=3, out=out, resume=True)
    finally:
        patch.undo()
    return folder


def test_an_extension_that_an_exception_ends_while_results_are_placed(out: Path) -> None:
    def act(nth: int) -> None:
        if nth == 3:
            raise Killed

    before = files_of(out)
    patch = at_each_placing(act)
    try:
        with pytest.raises(Killed):
            sweep((1, 2), seeds=3, out=out, resume=True)
    finally:
        patch.undo()
    assert_goes_on(out, before)


@pytest.mark.parametrize("nth", range(1, 7))
def test_an_extension_that_is_killed_while_results_are_placed(moments: Path, grid: Path, nth: int) -> None:
    assert_goes_on(moments / str(nth), files_of(grid))


def assert_goes_on(out: Path, earlier: dict[str, bytes]) -> None:
    before = {name: data for name, data in earlier.items() if name.startswith("adapters")}
    results = json.loads((out / "results.json").read_text())
    predictions = np.load(out / "predictions.npz")
    assert all((out / run["adapter"]).is_dir() for run in results["runs"] if run["adapter"])
    assert {f"test/{run['name']}" for run in results["runs"]} <= set(predictions)
    found = sweep((1, 2), seeds=3, out=out, resume=True)
    assert len(found.results["runs"]) == 18
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    assert not (out / "checkpoints").exists()


def other_base() -> nn.Module:
    model = small_model().double()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    return model


class Halved(nn.Sequential):
    """The same weights with other code."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": other_base()}, "the base has other weights now"),
        ({"model": Halved(*small_model().double())}, "the base's loss on the first rows is"),
        ({"train": double(some_data(64, 9))}, "the train data differ"),
        ({"training": Training(lr=1.0, batch_size=8, epochs=2)}, "has other settings now"),
        ({"tolerance": 0.2}, "tolerance is 0.2 now, and was None"),
        ({"plan": "auto"}, "plan is auto now, and was grid"),
        ({"lrs": (0.01,)}, "the learning rates of r1 are"),
        ({"configs": (1, 3)}, 'its configuration "r2" is not among those given'),
        ({"seeds": 1}, "its seeds 1 are not among those given"),
        ({"metric": lambda outputs, batch: 1 - accuracy(outputs, batch)}, "the base's validation metric is"),
    ],
)
def test_what_is_another_sweep_is_refused(out: Path, given: dict[str, Any], message: str) -> None:
    before = files_of(out)
    with pytest.raises(CheckpointError, match=message) as error:
        sweep(**{"seeds": 3, **given}, out=out, resume=True)
    assert "\n" not in str(error.value)
    assert files_of(out) == before, "nothing is written"


def test_an_undecided_answer_names_what_could_decide() -> None:
    results = sweep(seeds=2).results
    answer = results.answer
    assert answer is not None
    change(answer, verdict="undecided", more_seeds_needed=3, leaning=Leaning(name="r2", p_within=0.7))
    add_next(results, 2, lambda more, then: f"rankwise digits --resume runs/demo --more-seeds {more}")
    assert answer.next == "rankwise digits --resume runs/demo --more-seeds 3"
    assert "To add seeds, run `rankwise digits --resume runs/demo --more-seeds 3`." in answer_words(results)
    # An adaptive plan gave up after two of its four seeds, as five would be needed.
    add_next(results, 4, lambda more, then: f"sweep(..., seeds={then}), {more} more")
    assert answer.next == "sweep(..., seeds=5), 1 more"
    change(answer, next=UNSET, more_seeds_needed=None)
    add_next(results, 2, lambda more, then: "")
    assert "next" not in plain(answer)


@pytest.mark.parametrize("name", ["results.json", "predictions.npz", "curves.csv"])
def test_damaged_results_are_refused(out: Path, name: str) -> None:
    path = out / name
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises((CheckpointError, rankwise.errors.OutputError), match=r"damaged|is no file of a run"):
        sweep(seeds=3, out=out, resume=True)
