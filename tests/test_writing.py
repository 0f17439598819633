"""Files are whole, checked, and as readable as the user's umask says."""

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import nn

import rankwise
from rankwise.errors import CheckpointError, OutputError
from rankwise.sweeps.storage.directory import begin_run
from rankwise.writing import check_not_read, read_checked, write_checked


@pytest.fixture(params=[0o022, 0o002, 0o077])
def mode(request: pytest.FixtureRequest) -> Generator[int]:
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_every_file_has_the_mode_of_the_umask(tmp_path: Path, mode: int) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    begin_run(tmp_path / "run", "", {}, {"w": torch.ones(1)})
    rankwise.inject(model, rankwise.LoRAConfig(r=1))
    rankwise.save_adapter(model, tmp_path / "adapter")
    rankwise.save_merged(model, tmp_path / "merged")
    x = torch.randn(40, 4)
    rankwise.sweep(
        nn.Sequential(nn.Linear(4, 2)),
        [1],
        train=(x, x.sum(1, keepdim=True)),
        loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1),
        lrs=[1e-2],
        plan="grid",
        seeds=1,
        baseline=False,
        training=rankwise.Training(lr=1.0, epochs=1),
        out=tmp_path / "sweep",
        progress="quiet",
    )
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert len([path for path in modes if path.suffix == ".safetensors"]) == 4
    assert set(modes.values()) == {mode}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "other-1"}', '"x"', "[" * 9999])
def test_what_is_no_checked_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json (is damaged|has the format)"):
        read_checked(tmp_path / "a.json", "numbers-1")


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"a": [1, 2.5, "text"], "b": None}
    write_checked(path, "numbers-1", content)
    whole = path.read_bytes()
    assert read_checked(path, "numbers-1") == content
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:
            assert read_checked(path, "numbers-1") == content, i  # white space
        except CheckpointError:
            continue


def test_nothing_is_written_over_what_is_read(tmp_path: Path) -> None:
    folder, data, other = tmp_path / "adapter", tmp_path / "a.csv", tmp_path / "b.csv"
    folder.mkdir()
    for path in (folder / "x.json", data, other):
        path.write_text("mine")
    (tmp_path / "link.csv").symlink_to(data)
    for out in (data, tmp_path / "link.csv", folder / "x.json", folder / "new.json", folder / "deep" / "new.json"):
        with pytest.raises(OutputError, match="which is read; give --out another place"):
            check_not_read(out, [data, folder])
    check_not_read(other, [data, folder, tmp_path / "owner" / "name"])
