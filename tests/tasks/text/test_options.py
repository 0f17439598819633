"""Options of text tasks as they are read from a command line, and composed of groups."""

from pathlib import Path

import pytest
from composed_options import compose

from rankwise.errors import ConfigError
from rankwise.tasks.reading import parse_folders
from rankwise.tasks.text.options import SweepOptions, TrainOptions


def test_folders_with_commas_in_their_names(tmp_path: Path) -> None:
    """Runs of `rankwise.sweep` are named after their targets: r4-q_proj,v_proj-lr0.001-s0."""
    for name in ("r4-q,v", "r4-q,v,k", "b"):
        (tmp_path / name).mkdir()
    one, two, three = (str(tmp_path / name) for name in ("r4-q,v", "r4-q,v,k", "b"))
    assert parse_folders(one) == (one,)
    assert parse_folders(f"{one},{two}, {three}") == (one, two, three)
    assert parse_folders(f"{three},elsewhere") == (three, "elsewhere")


def test_a_setting_goes_into_the_group_that_declares_it() -> None:
    options = compose(SweepOptions, model="m", task="sft", data="d", epochs=5, limit_test=9, ranks=(2,))
    assert (options.training.epochs, options.examples.limit_test, options.grid.ranks) == (5, 9, (2,))
    with pytest.raises(TypeError, match="epoch"):
        compose(SweepOptions, model="m", task="sft", data="d", epoch=5)


def test_one_run_has_no_settings_of_a_comparison() -> None:
    options = compose(TrainOptions, model="m", task="sft", data="d", lr=(1e-3,))
    assert not {"baseline", "search", "widen", "plan", "tolerance"} & options.settings().keys()
    assert (options.grid.lr, options.grid.baseline, options.grid.search) == ((1e-3,), False, 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"search": -1}, "--search is -1; it is a number of examples, 0 to train the whole grid"),
        ({"test_share": 1.0}, "--test-share is 1.0; it is a share of the training data"),
        ({"head_rate": 0.0}, "--head-rate is 0.0; it must be a positive number"),
        ({"rungs": (2, 1)}, r"--rungs is \[2, 1\]; give rising numbers of epochs"),
        ({"limit_test": 0}, "--limit-test is 0; it must be a whole number of at least 1"),
        ({"ranks": (0,)}, r"--ranks is \[0\]; give one or more whole numbers"),
    ],
)
def test_what_a_setting_must_be(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(SweepOptions, model="m", task="sft", data="d", **setting)
