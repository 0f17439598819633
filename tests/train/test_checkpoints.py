"""Checkpoints: whole or not at all, whatever happens while one is written, and the one before is there."""

import json
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from rankwise.errors import CheckpointError, ConfigError, flags_named
from rankwise.train.checkpoints import Checkpoint, CheckpointInterval, Checkpoints


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tensors(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((3, 2), value), "b/c": torch.tensor([value], dtype=torch.float64), "n": torch.tensor(7)}


def opened(folder: Path, said: list[str] | None = None, **given: Any) -> Checkpoints:
    return Checkpoints(folder, [].append if said is None else said.append, **given)


def read(folder: Path, said: list[str] | None = None) -> Checkpoint | None:
    return opened(folder, said).read()


def value_of(checkpoint: Checkpoint | None, part: str = "pack-0") -> float:
    assert checkpoint is not None
    found = checkpoint.parts[part]
    assert all(torch.equal(value, found[key]) for key, value in tensors(found["b/c"].item()).items())
    return found["b/c"].item()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = opened(tmp_path)
    assert written.read() is None
    assert written.write({"pack-0": tensors(0.1), "log-0": {}}, {"epoch": 3, "seconds": 0.1})
    found = read(tmp_path)
    assert value_of(found) == 0.1
    assert found is not None
    assert found.plain == {"epoch": 3, "seconds": 0.1}
    assert found.parts["log-0"] == {}


def test_tensors_are_written_from_their_own_memory_as_safetensors_does(tmp_path: Path) -> None:
    large = {**tensors(0.5), "large": torch.rand(5 << 20), "none": torch.zeros(0, 3), "column": torch.rand(4, 4)[:, 1]}
    written = opened(tmp_path)
    tracemalloc.start()
    written.write({"pack-0": large}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 << 20, "a copy of the 20 MiB"
    file = (tmp_path / "000001-pack-0.safetensors").read_bytes()
    assert file == save({key: value.contiguous() for key, value in large.items()})


def test_two_are_kept_and_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    written = opened(tmp_path)
    written.write({"pack-0": tensors(0), "log-0": tensors(5)}, {})
    for i in range(1, 5):
        written.write({"pack-0": tensors(i), "log-0": None}, {"i": i})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000001-log-0.safetensors",
        "000004-pack-0.safetensors",
        "000005-pack-0.safetensors",
        "checkpoint-000004.json",
        "checkpoint-000005.json",
    ]
    found = opened(tmp_path)
    assert value_of(again := found.read()) == 4
    assert value_of(again, "log-0") == 5
    assert found.write({"log-0": None}, {}), "after reading too"
    assert value_of(read(tmp_path), "log-0") == 5


def test_a_new_start_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    opened(tmp_path).write({"pack-0": tensors(1)}, {})
    (tmp_path / "plan.json").write_text("not a checkpoint's")
    opened(tmp_path).write({"pack-1": tensors(2)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000001-pack-1.safetensors",
        "checkpoint-000001.json",
        "plan.json",
    ]


DAMAGE = {
    "a bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "the end": lambda data: data[:-1],
    "all": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
@pytest.mark.parametrize("file", ["checkpoint-000002.json", "000002-pack-0.safetensors"])
def test_a_damaged_one_is_found_and_the_one_before_used(tmp_path: Path, how: str, file: str) -> None:
    written = opened(tmp_path)
    for i in (1, 2):
        written.write({"pack-0": tensors(i)}, {"i": i})
    path = tmp_path / file
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[how](path.read_bytes()))
    said: list[str] = []
    again = opened(tmp_path, said)
    assert value_of(again.read()) == 1
    if file not in ("checkpoint-000002.json",) or how != "gone":
        assert len(said) == 1
        assert "checkpoint-000002.json is damaged (" in said[0]
        assert said[0].endswith("; the checkpoint before it is used.")
    again.write({"pack-0": tensors(3)}, {})
    assert value_of(read(tmp_path)) == 3
    assert not any(path.name.startswith(("000002", "checkpoint-000002")) for path in tmp_path.iterdir())


def test_when_none_is_whole_training_starts_anew(tmp_path: Path) -> None:
    opened(tmp_path).write({"pack-0": tensors(1)}, {})
    (tmp_path / "000001-pack-0.safetensors").unlink()
    said: list[str] = []
    assert read(tmp_path, said) is None
    assert said[-1] == f"No checkpoint in {tmp_path} is whole; training starts from the beginning."


def test_another_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).write({}, {})
    path = tmp_path / "checkpoint-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "rankwise-checkpoint-9"}))
    with pytest.raises(CheckpointError, match='has the format "rankwise-checkpoint-9"; this version of rankwise reads'):
        read(tmp_path)


class KillError(BaseException):
    """Stands for a process that ends at once: nothing that the program does after it counts."""


@pytest.mark.parametrize("what", [OSError(28, "No space left on device"), KillError()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_a_failed_write_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: BaseException, call: str, nth: int
) -> None:
    said: list[str] = []
    written = opened(tmp_path, said)
    for i in (1, 2):
        written.write({"pack-0": tensors(i), "pack-1": tensors(i)}, {"i": i})
    real, calls = getattr(os, call), []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            raise what
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        parts = {"pack-0": tensors(3), "pack-1": tensors(3)}
        if isinstance(what, KillError):
            try:
                done = written.write(parts, {"i": 3})
            except KillError:
                done = False
        else:
            done = written.write(parts, {"i": 3})
            if not done:
                assert said == [
                    f"A checkpoint could not be written to {tmp_path} (No space left on device); the last one is "
                    "kept, and training continues."
                ]
    assert done == (len(calls) < nth), "three files, each flushed with its folder and renamed once"
    found = read(tmp_path)
    # Where the last flush failed, the manifest is in place already.
    last_flush = call == "fsync" and nth == 6
    assert value_of(found) in ({2, 3} if last_flush else {3} if done else {2})
    assert value_of(found, "pack-1") == value_of(found)
    again = opened(tmp_path)
    again.read()
    assert again.write({"pack-0": tensors(4), "pack-1": None}, {})
    assert value_of(read(tmp_path)) == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    said: list[str] = []
    written = opened(tmp_path, said)
    assert written.write({"pack-0": tensors(1)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert not written.write({"pack-0": {"a": torch.zeros(1000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said == [
        f"A checkpoint could not be written to {tmp_path} (File too large); the last one is kept, "
        "and training continues."
    ]
    assert value_of(read(tmp_path)) == 1
    assert written.write({"pack-0": tensors(2)}, {}), "and the next is written when there is room again"
    assert value_of(read(tmp_path)) == 2


def test_when_one_is_due(tmp_path: Path) -> None:
    clock = Clock()
    by_itself = opened(tmp_path, clock=clock)
    by_epochs = opened(tmp_path, every=CheckpointInterval(epochs=2), clock=clock)
    by_seconds = opened(tmp_path, every=CheckpointInterval(seconds=5), clock=clock)
    clock.now = 4.9
    by_epochs.epoch_over()
    assert [each.due() for each in (by_itself, by_epochs, by_seconds)] == [False] * 3
    clock.now = 20
    by_epochs.epoch_over()
    assert [each.due() for each in (by_itself, by_epochs, by_seconds)] == [True] * 3
    for each in (by_itself, by_epochs, by_seconds):
        each.write({}, {})
        assert not each.due()


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    clock = Clock()
    written = opened(tmp_path, clock=clock)

    class Slow(dict[str, Any]):
        """A plain part that takes 3 seconds to write."""

        def items(self) -> Any:
            clock.now += 3
            return super().items()

    written.write({}, Slow(a=1))
    took = written.seconds
    assert took >= 3
    clock.now += 49 * took
    assert not written.due()
    clock.now += 2 * took
    assert written.due()


def test_refused() -> None:
    with pytest.raises(ConfigError, match="epochs is 0; it must be a positive number"):
        CheckpointInterval(epochs=0)
    with pytest.raises(ConfigError, match=r"^seconds is nan"):
        CheckpointInterval(seconds=float("nan"))
    with flags_named(), pytest.raises(ConfigError, match=r"^--checkpoint-seconds is nan"):
        CheckpointInterval(seconds=float("nan"))
