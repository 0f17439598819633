"""Settings of `rankwise digits`: lists in short form, and what is refused."""

import math
from typing import Any

import pytest

from rankwise.errors import ConfigError
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.tasks.options import DigitsOptions
from rankwise.tasks.reading import parse_numbers, parse_rates, parse_seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", (4,)),
        ("1, 2,2,8", (1, 2, 8)),
        ("1:64:x2", (1, 2, 4, 8, 16, 32, 64)),
        ("3:20:x3", (3, 9)),
        ("0:3", (0, 1, 2, 3)),
        ("2:10:4", (2, 6, 10)),
        ("5:5", (5,)),
    ],
)
def test_lists_of_numbers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_numbers(text) == expected


@pytest.mark.parametrize("text", ["a,b", "", "1,,2", "1.5", "1:2:3:4", "1:x2", "1:8:xx2"])
def test_no_list_of_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="is no list of whole numbers; write them as 1,2,4 or as a range"):
        parse_numbers(text)


@pytest.mark.parametrize("text", ["8:1", "1:8:0", "1:8:x1", "0:8:x2", "1:8:-1"])
def test_ranges_without_end(text: str) -> None:
    with pytest.raises(ConfigError, match=f'The range "{text}" holds no numbers'):
        parse_numbers(text)


def test_seeds_are_a_number_or_a_list() -> None:
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("3,4") == (3, 4)
    assert parse_seeds("7:7") == (7,)


def test_rates() -> None:
    assert parse_rates("1e-3, 3e-4") == (0.001, 0.0003)
    with pytest.raises(ConfigError, match='"fast" is no list of learning rates'):
        parse_rates("fast")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranks": ()}, r"--ranks is \[\]"),
        ({"ranks": (4, 0)}, r"--ranks is \[4, 0\]; give one or more whole numbers of at least 1"),
        ({"seeds": (-1,)}, r"--seeds is \[-1\]"),
        ({"protocol": "publish"}, 'Protocol "publish" is not known; .* Did you mean "published"'),
        ({"epochs": 0}, "--epochs is 0"),
        ({"batch_size": -3}, "--batch-size is -3"),
        ({"lr": ()}, r"--lr is \[\]"),
        ({"baseline_lr": (1e-3, math.nan)}, "--baseline-lr is .*; give positive numbers"),
        ({"alpha": (0.0,)}, r"--alpha is \[0\.0\]; give positive numbers"),
        ({"alpha": (math.inf,)}, r"--alpha is \[inf\]"),
        ({"deciding": Deciding(tolerance=1.0)}, r'The tolerance is "1\.0"'),
    ],
)
def test_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DigitsOptions(**changed)


@pytest.mark.parametrize("tolerance", [math.nan, -0.01, "wide", "1 percent"])
def test_a_tolerance_that_is_none(tolerance: str | float) -> None:
    with pytest.raises(ConfigError, match=f'The tolerance is "{tolerance}"'):
        Deciding(tolerance=tolerance)


def test_the_configuration_is_complete_but_for_the_place() -> None:
    config = DigitsOptions(lr=(1e-3,), batch_size=32).settings()
    assert config["lr"] == [0.001]
    assert config["batch-size"] == 32
    assert "out" not in config
    assert DigitsOptions(seeds=(7,)).settings()["seeds"] == [7], "not seven seeds"


def test_the_settings_of_earlier_versions_are_as_they_were() -> None:
    assert not {"optimiser", "variant"} & DigitsOptions().settings().keys()
    changed = DigitsOptions(optimiser="sgd", variant=("lora", "dora")).settings()
    assert (changed["optimiser"], changed["variant"]) == ("sgd", ["lora", "dora"])
