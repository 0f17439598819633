"""A sweep whose units are trained by processes of this machine comes to what one process comes to."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise import LocalProcesses, RankwiseError, Sweep, Training, sweep
from rankwise.cli.training import RunOptions
from rankwise.cli.workers import processes_of
from rankwise.locking import LOCK, locked
from rankwise.pack.pack import Pack
from rankwise.sweeps.run.units import local
from small_sweep import loss, small_model, some_data
from test_resume import contents
from worked_sweep import assert_alike, begin_and_stop, swept

pytestmark = pytest.mark.skipif(not local.can_fork(), reason="Linux alone forks")
DRIVER = os.getpid()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Any]]:
    """The sweep in one process, and what its directory holds."""
    out = tmp_path_factory.mktemp("here") / "out"
    return swept(out, None)[0], contents(out)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Any]]:
    """The sweep in two processes, and what its directory holds."""
    out = tmp_path_factory.mktemp("there") / "out"
    return swept(out, LocalProcesses(2))[0], contents(out)


def dying(times: int, number: int, in_: str) -> Callable[[Pack], None]:
    """Pack.update, which ends the process of a unit by a signal at its third step, as often as is given.

    Args:
        times: How often.
        number: The signal.
        in_: A run of the pack that it happens to.
    """
    update, shared = Pack.update, torch.zeros(1).share_memory_()
    steps = [0]

    def call(self: Pack, *given: Any) -> Any:
        steps[0] += any(one.member.name.startswith(in_) for one in self.members)
        if os.getpid() != DRIVER and steps[0] == 3 and shared[0] < times:
            shared[0] += 1
            os.kill(os.getpid(), number)
        return update(self, *given)

    return call


def test_results_are_those_of_one_process(
    here: tuple[Sweep, dict[str, Any]], there: tuple[Sweep, dict[str, Any]]
) -> None:
    assert_alike(here[0], there[0])


def test_an_adaptive_plan_takes_the_same_way(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "plan": "auto",
        "rungs": (),
        "max_runs": 8,
        "training": Training(epochs=1),
        "curve": False,
    }
    one, two = (swept(tmp_path / f"{n}", LocalProcesses(n), **settings)[0].results for n in (1, 2))
    assert one.answer == two.answer
    assert [run.name for run in one.runs] == [run.name for run in two.runs]
    assert not (tmp_path / "2" / "checkpoints").exists()


def test_a_process_that_dies_changes_nothing(
    tmp_path: Path, there: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pack, "update", dying(1, signal.SIGKILL, "r1"))
    _, messages = swept(tmp_path / "out", LocalProcesses(2))
    assert contents(tmp_path / "out") == there[1]
    assert sum("died; another continues from its last checkpoint" in text for text in messages) == 1


def test_a_unit_that_the_system_ends_twice_is_split(
    tmp_path: Path, here: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pack, "update", dying(2, signal.SIGKILL, "r1"))
    found, _ = swept(tmp_path / "out", LocalProcesses(2))
    assert any("Memory ran out for" in note for note in found.results.notes)
    assert found.results.answer.name == here[0].results.answer.name


def test_another_death_ends_the_run_which_can_be_resumed(
    tmp_path: Path, there: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Pack, "update", dying(9, signal.SIGUSR1, "r1"))
        with pytest.raises(RankwiseError, match=r"The process of unit \d died twice \(SIGUSR1\)"):
            swept(tmp_path / "out", LocalProcesses(2))
    swept(tmp_path / "out", LocalProcesses(2), resume=True)
    assert contents(tmp_path / "out") == there[1]


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    def wrong(outputs: Tensor, batch: Any) -> Tensor:
        if os.getpid() != DRIVER:
            raise KeyError("no such column")
        return loss(outputs, batch)

    with pytest.raises(Exception, match="no such column") as found:
        swept(tmp_path / "out", LocalProcesses(2), loss=wrong)
    assert any("in wrong" in note for note in found.value.__notes__), "where it happened is there too"


def test_ctrl_c_keeps_what_was_trained(
    tmp_path: Path, there: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Pack.update

    def interrupting(self: Pack, *given: Any) -> Any:
        if os.getpid() != DRIVER:
            os.kill(DRIVER, signal.SIGINT)
            time.sleep(0.05)
        return update(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "update", interrupting)
        with pytest.raises(KeyboardInterrupt, match="resume with"):
            swept(tmp_path / "out", LocalProcesses(2))
    swept(tmp_path / "out", LocalProcesses(2), resume=True)
    assert contents(tmp_path / "out") == there[1]


def test_a_run_begun_in_one_process_is_resumed_in_two(
    tmp_path: Path, here: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_and_stop(tmp_path / "out", monkeypatch)
    swept(tmp_path / "out", LocalProcesses(2), resume=True)
    assert contents(tmp_path / "out") == here[1], "it keeps its packs"


def test_a_unit_that_another_process_trains_is_waited_for(
    tmp_path: Path, there: tuple[Sweep, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Pack, "update", dying(9, signal.SIGUSR1, "r1"))
        with pytest.raises(RankwiseError, match="died twice"):
            swept(tmp_path / "out", LocalProcesses(2))
    units = tmp_path / "out" / "checkpoints" / "units"
    monkeypatch.setattr(local, "ENDS_IN", 0.0)
    with locked(units / "000000"), pytest.raises(RankwiseError, match="in use by another run"):
        swept(tmp_path / "out", LocalProcesses(2), resume=True)
    swept(tmp_path / "out", LocalProcesses(2), resume=True)
    assert contents(tmp_path / "out") == there[1]


def test_a_process_does_not_hold_its_drivers_locks(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        child = local.get_context("fork").Process(target=lambda: (local.let_go(), time.sleep(60)), daemon=True)
        child.start()
        time.sleep(0.5)
        before = (tmp_path / "run" / LOCK).read_text()
    with locked(tmp_path / "run"):
        assert before
    child.kill()


def test_threads_are_what_they_were(tmp_path: Path) -> None:
    two = LocalProcesses(2)
    torch.set_num_threads(2)
    try:
        two.begin(tmp_path)
        assert torch.get_num_threads() == 1
        two.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_run_directory_and_a_cpu_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RankwiseError, match="need a run directory"):
        sweep(small_model(), [1], train=some_data(40, 0), loss=loss, workers=LocalProcesses(2))
    monkeypatch.setattr(local.sys, "platform", "darwin")
    with pytest.raises(RankwiseError, match="on Linux alone, and this is darwin"):
        LocalProcesses(2)
    assert local.suggested(torch.device("cpu")) == 1


def test_the_digits_take_as_many_processes_as_torch_takes_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"device": "cpu"}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert processes_of(RunOptions(), "digits", settings) == 6
    assert processes_of(RunOptions(), "sweep", settings) == 1
    assert processes_of(RunOptions(processes=3), "sweep", settings) == 3
    assert processes_of(RunOptions(prepare=True), "digits", settings) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert processes_of(RunOptions(), "digits", settings) == local.MOST


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (RunOptions(processes=0), "--processes is 0; it must be a whole number of at least 1"),
        (RunOptions(processes=2, ray="local"), "--processes trains packs on this machine, and --ray has others do it"),
        (RunOptions(processes=2, prepare=True), "and --prepare has others do it; give one of them"),
    ],
)
def test_what_cannot_be_is_refused(given: RunOptions, words: str) -> None:
    with pytest.raises(RankwiseError, match=words):
        processes_of(given, "sweep", {"device": "cpu"})


def test_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RankwiseError, match="--processes 2 is for a CPU, and --device is meta"):
        processes_of(RunOptions(processes=2), "sweep", {"device": "meta"})
