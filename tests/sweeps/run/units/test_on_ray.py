"""A sweep whose units are trained by workers of Ray comes to what one process comes to, whatever ends meanwhile."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fake_ray import FakeRay, OutOfMemoryError, RayActorError, RayTaskError
from rankwise import RankwiseError, Ray, Sweep, Training, sweep
from rankwise.locking import locked
from rankwise.sweeps.run.stages import Stages
from rankwise.sweeps.run.units import address, on_ray
from small_sweep import accuracy, loss, small_model, some_data
from test_resume import contents
from worked_sweep import assert_alike, begin_and_stop, swept

DIED = RayActorError("The actor died unexpectedly before finishing this task.")
SHORT = OutOfMemoryError("Task was killed due to the node running low on memory.")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Ray with two CPUs, whose workers get a copy of the experiment."""
    found, held = FakeRay(), list[Any]()
    for name, module in found.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(on_ray, "write_experiment", lambda path, context: held.append(context))
    monkeypatch.setattr(on_ray, "FromFile", lambda path: lambda: copy.deepcopy(held[-1]))
    monkeypatch.setattr(on_ray.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Stages, "measured_price", lambda self, runs: 1.0)
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Any]]:
    """The sweep in one process, undisturbed, and what its directory holds."""
    out = tmp_path_factory.mktemp("here") / "out"
    return swept(out, None)[0], contents(out)


def on(address: str = "local", **settings: Any) -> Ray:
    return Ray(address=address, cpus_per_worker=1, **settings)


def test_an_adaptive_plan_comes_to_what_one_process_comes_to(fake: FakeRay, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"plan": "auto", "rungs": (), "max_runs": 8, "training": Training(epochs=1)}
    swept(tmp_path / "here", None, **settings)
    swept(tmp_path / "there", on(), **settings)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert not (tmp_path / "there" / "checkpoints").exists()


def test_workers_that_die_change_nothing(fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]) -> None:
    fake.deaths = [[None, DIED], [DIED], [], [None, DIED], [DIED]]
    _, messages = swept(tmp_path / "there", on())
    assert contents(tmp_path / "there") == here[1]
    assert not [text for text in messages if "Measuring" in text], "workers have"
    assert sum("died; another continues from its last checkpoint" in text for text in messages) == 4


def test_a_unit_whose_workers_die_again_and_again_ends_the_run(
    fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]
) -> None:
    fake.deaths = [[DIED]] * 30
    with pytest.raises(RankwiseError, match=r"11 workers died over unit \d, the last one with: The actor died unexp"):
        swept(tmp_path / "there", on())
    fake.deaths = []
    swept(tmp_path / "there", None, resume=True)
    assert contents(tmp_path / "there") == here[1]


def test_an_error_is_tried_again_on_a_new_worker(
    fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]
) -> None:
    lost = RayTaskError(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    fake.deaths = [[None, lost]]
    _, messages = swept(tmp_path / "there", on())
    assert contents(tmp_path / "there") == here[1]
    assert [text for text in messages if "failed (RuntimeError: CUDA error: uncorrectable ECC error" in text]
    fake.deaths = [[lost]] * 3
    with pytest.raises(RayTaskError, match="ECC"):
        swept(tmp_path / "again", on())
    fake.deaths = [[RayTaskError(RankwiseError("there is no room"))]]
    with pytest.raises(RankwiseError, match="no room"):
        swept(tmp_path / "refused", on())


@pytest.mark.parametrize("wild", ["nan", "raises"])
def test_an_error_of_one_adapter_ends_that_adapter(fake: FakeRay, tmp_path: Path, wild: str) -> None:
    """A loss that is no number for one learning rate, a metric that raises on its outputs."""

    def strict(outputs: Tensor, batch: Any) -> Tensor:
        if wild == "raises" and outputs.min() < -1e3:
            raise ValueError("not probable at all")
        return accuracy(outputs, batch)

    given: dict[str, Any] = {"lrs": [3e-3, 1e200 if wild == "nan" else 300.0], "baseline": [3e-3], "metric": strict}
    swept(tmp_path / "here", None, **given)
    there, messages = swept(tmp_path / "there", on(), **given)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    ends = {run.name: run.status for run in there.results.runs}
    lost = "diverged" if wild == "nan" else "failed"
    assert {name for name, status in ends.items() if status == lost} == {
        f"r{r}-lr{given['lrs'][1]:g}-s{s}" for r in (1, 2) for s in (0, 1)
    }
    assert {run.lr for run in there.results.runs if run.status == "finished"} == {3e-3}
    assert any(f"{lost.capitalize()}, and left out: r1-lr" in note for note in there.results.notes)
    assert not [text for text in messages if "died" in text or "failed" in text]


def test_a_unit_that_runs_out_of_memory_twice_is_split(
    fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]
) -> None:
    fake.deaths = [[None, SHORT], [], [SHORT]]
    one, there = here[0], swept(tmp_path / "there", on(max_workers=1))[0]
    notes = "\n".join(there.results.notes)
    assert "Memory ran out for 8 runs at a time; they went on in packs of 4 and 4." in notes
    assert_alike(there, one)


@pytest.mark.parametrize("then", [on, lambda: None], ids=["on Ray", "in one process"])
def test_a_driver_that_is_interrupted_is_resumed(
    fake: FakeRay, tmp_path: Path, then: Callable[[], Ray | None], here: tuple[Sweep, dict[str, Any]]
) -> None:
    fake.deaths = [[None, None, KeyboardInterrupt()]]
    with pytest.raises(KeyboardInterrupt, match="resume with"):
        swept(tmp_path / "there", on())
    assert fake.killed, "no worker is left"
    swept(tmp_path / "there", then(), resume=True)
    assert contents(tmp_path / "there") == here[1]


def test_a_run_begun_in_one_process_is_resumed_on_ray(
    fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_and_stop(tmp_path / "there", monkeypatch)
    swept(tmp_path / "there", on(), resume=True)
    assert contents(tmp_path / "there") == here[1]


def test_a_unit_that_another_process_trains_is_waited_for(
    fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]
) -> None:
    units = tmp_path / "there" / "checkpoints" / "units"
    fake.deaths = [[KeyboardInterrupt()]]
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "there", on())
    held, tries = locked(units / "000000"), [0]
    held.__enter__()

    def sleep(seconds: float) -> None:
        tries[0] += 1
        if tries[0] == 2:
            held.__exit__(None, None, None)

    on_ray.time.sleep = sleep  # the fixture puts it back
    swept(tmp_path / "there", on(), resume=True)
    assert tries[0] >= 2
    assert contents(tmp_path / "there") == here[1]


def test_what_workers_ask_for_is_there(fake: FakeRay) -> None:
    assert on().at_once == 2
    assert on(max_workers=1).at_once == 1
    assert Ray(address="local").at_once == 2, "half a machine each"
    with pytest.raises(RankwiseError, match=r"A worker takes 1 CPUs and 1 GPUs, and the largest machine .* 0 GPUs"):
        _ = on(gpus_per_worker=1).at_once
    fake.cpus, fake.gpus = 16.0, 4.0
    assert Ray(address="local").at_once == 4, "one a GPU"
    assert Ray(address="local", gpus_per_worker=0.5).at_once == 8
    with pytest.raises(RankwiseError, match=r"need a run directory"):
        sweep(small_model(), [1], train=some_data(40, 0), loss=loss, workers=on())


def test_workers_that_share_a_memory_share_its_plan(fake: FakeRay) -> None:
    assert [on().in_one_memory, on(max_workers=1).in_one_memory, Ray(address="local").in_one_memory] == [2, 1, 2]
    fake.cpus, fake.gpus = 16.0, 4.0
    given = [None, 1, 0.5, 0.25, 0.75, 0]
    sharing = [Ray(address="local", gpus_per_worker=gpus, cpus_per_worker=2).in_one_memory for gpus in given]
    assert sharing == [1, 1, 2, 4, 1, 8]


def test_packs_are_planned_for_the_workers(fake: FakeRay, tmp_path: Path, here: tuple[Sweep, dict[str, Any]]) -> None:
    fake.cpus = 4.0
    there, _ = swept(tmp_path / "there", on())
    packs = [run.pack for run in there.results.runs]
    assert len(set(packs)) == 4
    assert max(map(packs.count, packs)) == 4
    assert_alike(there, here[0])


def test_without_ray_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with pytest.raises(RankwiseError, match='Workers on Ray need the package "ray", of the extra "ray"'):
        on()
