"""One process at a time in a directory, and folders that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.errors import OutputError
from rankwise.locking import LOCK, locked, staging


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    hold = f"from pathlib import Path; from rankwise.locking import locked\nwith locked(Path({str(tmp_path)!r})): "
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        message = rf"in use by another run of rankwise \(process {process.pid} on "
        with pytest.raises(OutputError, match=message), locked(tmp_path):
            pass
        process.kill()
    assert (tmp_path / LOCK).exists(), "a killed process can't remove it"
    with locked(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_what_is_made_and_not_used_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not any(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "results").touch()
    assert (tmp_path / "a" / "b" / "results").exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_staging(tmp_path: Path) -> None:
    def fail(staged: Path) -> None:
        (staged / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError), staging(tmp_path / "new") as staged:
        fail(staged)
    assert not any(tmp_path.iterdir())
    left = tmp_path / ".new.unfinished"
    left.mkdir()
    (left / "model-00002-of-00002.safetensors").touch()
    with pytest.raises(OutputError, match="exists and is not rankwise's"), staging(tmp_path / "new"):
        pass
    (left / LOCK).touch()
    (tmp_path / "new").mkdir()
    with staging(tmp_path / "new") as staged:
        (staged / "whole").touch()
        with pytest.raises(OutputError, match="in use by another run"), staging(tmp_path / "new"):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "whole"]
    assert os.listdir(tmp_path / "new") == ["whole"]
