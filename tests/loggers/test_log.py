"""What every logger is handed, and that the loggers hear of a sweep what it found."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.cli import main
from rankwise.errors import ConfigError
from rankwise.loggers.log import Log
from rankwise.loggers.table import LOGGERS, loggers
from rankwise.train.events import Message, Observers, RunInfo
from rankwise.train.outcome import Outcome
from rankwise.train.settings import Training
from small_sweep import accuracy, loss, small_model, some_data


class Heard(Log):
    """Keeps everything."""

    def __init__(self, *, append: bool = False) -> None:
        super().__init__(append=append)
        self.values: dict[str, list[tuple[int, str, float]]] = {}
        self.infos: dict[str, RunInfo] = {}
        self.ended: dict[str, str] = {}
        self.closed: list[tuple[str | None, str]] = []

    def begin(self, run: RunInfo) -> None:
        assert run.name not in self.values
        self.values[run.name], self.infos[run.name] = [], run

    def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
        assert run.name not in self.ended
        self.values[run.name] += [(step, name, value) for name, value in values.items()]

    def end(self, run: RunInfo, outcome: Outcome) -> None:
        self.ended[run.name] = outcome.status

    def close(self, verdict: str | None, words: str) -> None:
        self.closed.append((verdict, words))


GIVEN: dict[str, Any] = {
    "train": some_data(40, 0),
    "validation": some_data(30, 1),
    "test": some_data(20, 2),
    "loss": loss,
    "metric": accuracy,
    "metric_name": "accuracy",
    "training": Training(batch_size=8, epochs=2),
    "lrs": 0.03,
    "plan": "grid",
    "seeds": 2,
    "progress": "quiet",
}


def test_a_sweep_is_logged_as_it_was() -> None:
    heard = Heard()
    found = rankwise.sweep(small_model(), [1, 4], **GIVEN, observers=[heard])
    assert heard.ended == {run["name"]: run["status"] for run in found.results["runs"]}
    for run in found.results["runs"]:
        info, values = heard.infos[run["name"]], heard.values[run["name"]]
        assert (info.configuration, info.r, info.seed, info.lr) == tuple(
            run[key] for key in ("configuration", "r", "seed", "lr")
        )
        assert (info.parameters, info.steps) == (run["trainable_parameters"], 10)
        assert [step for step, name, _ in values if name == "train/loss"] == [*range(1, 11)]
        rates = [value for _, name, value in values if name == "train/lr"]
        assert rates == pytest.approx([run["lr"]] * 10)
        points = [point for point in found.swept.curve if point.run == run["name"]]
        for name, field in (("validation/loss", "validation_loss"), ("validation/accuracy", "metric")):
            assert [(s, v) for s, n, v in values if n == name] == [(p.step, getattr(p, field)) for p in points]
        means = [
            math.fsum(v for s, n, v in values if n == "train/loss" and p.step - 5 < s <= p.step) / 5 for p in points
        ]
        assert means == pytest.approx([p.train_loss for p in points], rel=1e-5)
    assert found.answer is not None
    ((verdict, words),) = heard.closed
    assert verdict == found.answer["verdict"]
    assert words in str(found)


def test_a_sweep_that_fails_closes_its_loggers() -> None:
    heard = Heard()

    def failing(outputs: Any, batch: Any) -> Any:
        if heard.values:
            raise KeyboardInterrupt
        return accuracy(outputs, batch)

    with pytest.raises(KeyboardInterrupt):
        rankwise.sweep(small_model(), [1], **{**GIVEN, "metric": failing}, observers=[heard])
    assert heard.closed == [(None, "")]


def test_a_logger_that_cant_write_costs_no_training() -> None:
    class Full(Heard):
        def write(self, run: RunInfo, step: int, values: Mapping[str, float]) -> None:
            raise OSError(28, "No space left on device")

    heard, messages = Heard(), []

    class Listening:
        def on_event(self, event: object) -> None:
            if isinstance(event, Message):
                messages.append(event.text)

    found = rankwise.sweep(small_model(), [1], **GIVEN, observers=[Full(), heard, Listening()])
    assert heard.ended == {run["name"]: "finished" for run in found.results["runs"]}
    assert "Full can't write (No space left on device); training continues without it." in messages


def test_unknown_loggers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r'log_to "cvs" is not known; there are .*'):
        loggers(["cvs"], tmp_path, False)
    assert main(["digits", "--out", str(tmp_path / "out"), "--log-to", "cvs"]) == 2
    assert capsys.readouterr().err.startswith('rankwise: --log-to "cvs" is not known; there are')
    assert not (tmp_path / "out").exists()


def test_flags_name_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Path, bool, Heard]] = []

    def making(name: str) -> Any:
        def make(folder: Path, append: bool) -> Heard:
            made.append((name, folder, append, Heard(append=append)))
            return made[-1][-1]

        return make

    monkeypatch.setitem(LOGGERS, "one", making("one"))
    monkeypatch.setitem(LOGGERS, "other", making("other"))

    def run(make: Any, place: Any, observers: Observers) -> Any:
        observers.message("hello")
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.experiment.run_experiment", run)
    out = tmp_path / "out"
    assert main(["digits", "--quiet", "--out", str(out), "--log-to", "one", "--log-to", "other,one"]) == 130
    assert [(name, folder, append) for name, folder, append, _ in made] == [
        ("one", out / "logs", False),
        ("other", out / "logs", False),
    ]
    assert [heard.closed for *_, heard in made] == [[(None, "")]] * 2
