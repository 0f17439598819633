"""TensorBoard: the event files hold the numbers, run by run."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.loggers.tensorboard import TensorBoardLog
from rankwise.train.events import Ended, EpochEnded, Resumed, RunEnded, RunInfo, Started, Stepped
from rankwise.train.outcome import EpochPoint, Outcome

RUN = RunInfo("r1-s0", "r1", "r = 1", "lora", 1, 0.1, 0, 10, 4)
EVENTS = (
    Started((RUN,), "accuracy"),
    Stepped((RUN.name,), 2, ((1.0,), (0.5,)), ((0.1,), (0.25,))),
    EpochEnded((EpochPoint(RUN.name, 2, 0.75, 0.625, 0.875, 0.05, 3.0),)),
    RunEnded(Outcome(RUN.name, {}, "finished", None, 2, 2, 1, 0.1)),
    Ended("shown", "r = 1 does it"),
)


def read(folder: Path) -> Iterator[tuple[int, str, float | str]]:
    """Step, tag and value of every event in a folder: records are a length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                text = value.tensor.string_val
                yield event.step, value.tag, text[0].decode() if text else value.simple_value


def log(folder: Path, *events: object) -> None:
    written = TensorBoardLog(folder)
    for event in events:
        written.on_event(event)  # pyright: ignore[reportArgumentType]


def test_a_folder_for_each_run(tmp_path: Path) -> None:
    log(tmp_path, *EVENTS)
    assert {(step, tag): value for step, tag, value in read(tmp_path / RUN.name)} == {
        (0, "run/text_summary"): "r = 1, learning rate 0.1, seed 0, 10 trainable parameters",
        (1, "train/loss"): 1.0,
        (1, "train/lr"): pytest.approx(0.1),
        (2, "train/loss"): 0.5,
        (2, "train/lr"): 0.25,
        (2, "train/gradient_norm"): 3.0,
        (2, "validation/loss"): 0.625,
        (2, "validation/accuracy"): 0.875,
        (2, "status/text_summary"): "finished",
    }
    assert [*read(tmp_path)] == [(0, "verdict/text_summary", "r = 1 does it")]


def test_a_new_run_replaces_event_files_and_a_resumed_one_adds_some(tmp_path: Path) -> None:
    log(tmp_path, *EVENTS)
    once = [*read(tmp_path / RUN.name)]
    log(tmp_path, *EVENTS)
    assert [*read(tmp_path / RUN.name)] == once
    log(tmp_path, EVENTS[0], Resumed((), ()), *EVENTS[1:])
    assert sorted(read(tmp_path / RUN.name)) == sorted([*once, *once])


def test_without_a_package_it_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r'needs the package "\S*tensorboard", .*checkout of Rankwise\.$'):
        TensorBoardLog(tmp_path)
