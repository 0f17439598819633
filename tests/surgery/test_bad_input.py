"""What the commands can't do: exit code 2, nothing written, one line that names what is wrong."""

from pathlib import Path

import pytest
from torch import nn

import rankwise
from adapted_models import bert, gpt2, mlp, ours
from rankwise.cli import main


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of one base that don't go together, and models of different shapes."""
    folder = tmp_path_factory.mktemp("given")
    kinds = {
        "a": {"target_modules": ["up"]},
        "other-target": {"target_modules": ["down"]},
        "dora": {"target_modules": ["up"], "variant": "dora"},
        "vera": {"target_modules": ["up"], "variant": "vera"},
        "head": {"target_modules": ["up"], "modules_to_save": ["down"]},
    }
    for name, settings in kinds.items():
        rankwise.save_adapter(ours(mlp(), **settings), folder / name)
    wide = nn.ModuleDict({"up": nn.Linear(7, 8), "block": nn.ModuleDict({"up": nn.Linear(8, 8)})})
    rankwise.save_adapter(ours(wide, target_modules=["up"]), folder / "wide")
    gpt2().save_pretrained(folder / "gpt2")
    bert().save_pretrained(folder / "bert")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("resize a --rank 3", "--rank is 3;"),
        ("resize a --rank 0", "--rank is 0; a rank is at least 1"),
        ("resize dora --rank 1", "is of a DoRA adapter"),
        ("resize vera --rank 1", "is of a VeRA adapter"),
        ("resize empty --rank 1", "adapter_config.json"),
        ("resize nowhere --rank 1", "nowhere"),
        ("combine a dora", "is of a DoRA adapter"),
        ("combine a vera", "is of a VeRA adapter"),
        ("combine a other-target", 'adapts "'),
        ("combine a head", 'differ in "'),
        ("combine a wide", "Only adapters of one base can be combined"),
        ("combine a", "1 adapter is given"),
        ("combine", "No adapter is given"),
        ("combine a a --method ties", "--density is missing"),
        ("extract bert gpt2 --rank 1", 'bert has no tensor of gpt2, where the first is "wte.weight"'),
        ("extract bert empty --rank 1", "has no model.safetensors"),
        ("extract bert bert --rank 1", "have the same weights"),
        ("extract bert bert", "give one of --rank, --energy, --error"),
        ("extract bert nowhere --rank 1", "nowhere"),
    ],
)
def test_one_line(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(given)
    assert main([*command.split(), "--out", str(tmp_path / "out")]) == 2
    printed, said = capsys.readouterr()
    assert (printed, said.count("\n"), said[:10]) == ("", 1, "rankwise: ")
    assert message in said
    assert not (tmp_path / "out").exists()
