"""Axes of a sweep on the command line: kinds of adapters, sets of modules, alphas."""

from pathlib import Path

import pytest
import yaml
from composed_options import compose

from rankwise.cli import main
from rankwise.tasks.text.options import SweepOptions, TrainOptions
from rankwise.tasks.text.run import fresh_adapters
from test_cli import refused

GIVEN = ["sweep", "--model", "m", "--task", "classify", "--data", "d.csv"]


def settings_of(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    assert main([*GIVEN, *flags, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)["sweep"]


def test_sets_of_modules_and_values_are_read_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain = settings_of(capsys, "--target-modules", "q,v", "--alpha", "16", "--init", "pissa")
    assert (plain["target-modules"], plain["alpha"], plain["init"], plain["scaling"]) == (
        ["q", "v"],
        16.0,
        "pissa",
        "alpha/r",
    )
    assert "lr-ratio" not in plain
    words = settings_of(capsys, "--target-modules", "q", "v")
    assert words["target-modules"] == ["q", "v"]
    flags = ["--target-modules", "q,v", "--target-modules", "all-linear", "--alpha", "16,32", "--init", "kaiming,pissa"]
    several = settings_of(capsys, *flags, "--lr-ratio", "16")
    assert several["target-modules"] == "q,v; all-linear"
    assert (several["alpha"], several["init"], several["lr-ratio"]) == ([16.0, 32.0], ["kaiming", "pissa"], 16.0)
    for written in (plain, words, several):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"sweep": written}))
        assert main(["sweep", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["sweep"] == written


def test_every_combination_is_one_adapter() -> None:
    options = compose(
        SweepOptions, model="m", task="classify", data="d.csv", ranks=(2, 4), init=("kaiming", "pissa"),
        alpha=(16.0, 32.0), target_modules=(("q",), ("all-linear",)), variant=("lora", "dora"),
    )  # fmt: skip
    adapters = fresh_adapters(options, {})
    assert len({str(adapter) for adapter in adapters}) == 32
    assert {str(adapter.target_modules) for adapter in adapters} == {"['q']", "all-linear"}


def test_one_line_says_what_does_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *GIVEN, "--init", "loftq")
    assert "--init is loftq" in said
    assert "--quantize nf4" in said
    assert 'init "pisa" is not known' in refused(capsys, *GIVEN, "--init", "kaiming,pisa")
    assert "needs an even rank" in refused(capsys, *GIVEN, "--init", "orthogonal", "--ranks", "1,2")
    with pytest.raises(Exception, match="trains one adapter, and --init names 2"):
        compose(TrainOptions, model="m", task="classify", data="d.csv", init=("kaiming", "pissa"))
