"""No setting is dropped without a word: of configurations, of files, of runs that are resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankwise import LoRAConfig, Training, sweep
from rankwise.cli import main
from rankwise.errors import CheckpointError, ConfigError
from rankwise.train.checkpoints import CheckpointInterval


def model(activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 2))


def loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1], reduction="none")


def smooth_loss(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1], reduction="none", label_smoothing=0.1)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


def run(base: nn.Module | None = None, configs: Any = (1,), **given: Any) -> Any:
    training = Training(epochs=2, batch_size=8)
    given = {"train": data(), "loss": loss, "training": training, "lrs": [1e-2], "baseline": False, "seeds": 1, **given}
    given = {"plan": "grid", **given}
    return sweep(base or model(), configs, progress="quiet", **given)


def test_a_configuration_s_own_rate_is_the_only_one() -> None:
    own = (LoRAConfig(r=2), Training(lr=0.05, epochs=1))
    found = run(configs={"own": own, "rank": (1, Training(lr=0.03, epochs=1)), "none": (1, Training(epochs=1))})
    rates = {run["configuration"]: run["lr"] for run in found.results["runs"]}
    assert rates == {"own": 0.05, "rank": 0.03, "none": 0.01}


def test_a_rate_that_is_not_used_is_noted() -> None:
    assert not [note for note in run().results["notes"] if "learning rate" in note]
    found = run(training=Training(lr=0.5, epochs=1))
    assert "The learning rate of `training`, 0.5, is not used" in " ".join(found.results["notes"])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_given_must_be_one(bad: float) -> None:
    with pytest.raises(ConfigError, match="must be a positive number"):
        Training(lr=bad)


@pytest.mark.parametrize(
    ("text", "expected"), [("[3]", [3]), ("3", [0, 1, 2]), ("[0, 7]", [0, 7]), ("'3:3'", [3]), ("'0,7'", [0, 7])]
)
def test_seeds_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: list[int]) -> None:
    import yaml

    file = tmp_path / "c.yaml"
    file.write_text(f"digits:\n  seeds: {text}\n")
    assert main(["digits", "--config", str(file), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["digits"]["seeds"] == expected
    file.write_text(printed)
    assert main(["digits", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run that was interrupted before it trained."""

    def interrupted(*args: Any, **given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rankwise.sweeps.run.run.Scheduler.rounds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(out=tmp_path / "out", every=CheckpointInterval(epochs=1))
    return tmp_path / "out"


def test_the_same_problem_is_resumed(stopped: Path) -> None:
    assert run(out=stopped, resume=True).results["complete"]


@pytest.mark.parametrize(
    ("base", "changed", "message"),
    [
        (nn.ReLU, {}, "The base's loss on the first rows is .* now, and was .* when it began"),
        (nn.Tanh, {"loss": smooth_loss}, "The base's loss on"),
        (nn.Tanh, {"call": lambda model, batch: model(batch[0]) * 2}, "The base's loss on"),
        (nn.Tanh, {"metric": lambda outputs, batch: outputs[:, 0]}, "The base's validation metric is"),
        (nn.Tanh, {"rungs": [1]}, r"can't be resumed with the rungs \[1\]; it began with \[\]"),
    ],
)
def test_another_problem_is_not(stopped: Path, base: type[nn.Module], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        run(model(base), out=stopped, resume=True, **changed)
