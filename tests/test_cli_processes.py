"""`rankwise train` under torchrun: two processes train one adapter as one does, and the first alone writes."""

import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fresh
from rankwise.cli import main
from rankwise.results import read_results
from test_cli import refused

pytest.importorskip("transformers")
from text_models import make_model, make_tokenizer

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    make_model("llama", layers=1).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    lines = [f'{{"prompt": "{a} cat", "completion": "the {b} dog"}}' for a in range(10) for b in range(4)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    train = ["train", "--model", str(folder / "model"), "--task", "sft", "--data", str(folder / "data.jsonl")]
    return [*train, "--rank", "2", "--lr", "1e-2", "--epochs", "2", "--batch-size", "7", "--dropout", "0.1", "--quiet"]


def started(rank: int, port: int, arguments: list[str]) -> int:
    """What torchrun starts."""
    torch.set_num_threads(1)
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in named.items()})
    return main(arguments)


def together(arguments: list[str]) -> list[fresh.Ended]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with fresh.start(started, 0, port, arguments) as first, fresh.start(started, 1, port, arguments) as second:
        return [first.end(), second.end()]


def test_it_trains_what_one_process_trains(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--out", str(tmp_path / "one")]) == 0
    first, second = together([*flags, "--out", str(tmp_path / "two")])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert not second.stdout
    one, two = (read_results(tmp_path / name) for name in ("one", "two"))
    assert two.runs[0].metric == pytest.approx(one.runs[0].metric, rel=1e-4)
    folder = one.runs[0].adapter
    assert folder is not None
    expected, found = (load_file(tmp_path / name / folder / "adapter_model.safetensors") for name in ("one", "two"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("flag", ["--ray", "--prepare"])
def test_what_one_process_does_is_refused(
    flags: list[str], flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    given = ["local"] if flag == "--ray" else []
    assert f"{flag} is for one process" in refused(capsys, *flags, flag, *given)


def test_a_sweep_is_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    assert "run it without torchrun" in refused(capsys, "digits", "--quiet")
