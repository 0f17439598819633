"""What is asked of an answer."""

import pytest

from rankwise.errors import ConfigError
from rankwise.sweeps.choose.rule import Rule, Tolerance, default_tolerance, parse_tolerance


@pytest.mark.parametrize(
    ("given", "value"),
    [("1%", 0.0096), ("0.5 points", 0.005), ("2 point", 0.02), ("0.02", 0.02), (0.03, 0.03), (0, 0.0)],
)
def test_tolerances_of_accuracies(given, value):
    assert parse_tolerance(given, True).value(0.96, 0.1) == pytest.approx(value)


@pytest.mark.parametrize(("given", "value"), [("5%", 0.05), ("0.1", 0.1), (None, 0.05)])
def test_tolerances_of_losses(given, value):
    assert parse_tolerance(given, False).value(2.0, 3.0) == pytest.approx(value)


def test_the_default_of_an_accuracy_is_the_smaller_of_two():
    assert default_tolerance(True).value(0.96, 0.1) == pytest.approx(0.0096)
    assert default_tolerance(True).value(0.96, 0.9) == pytest.approx(0.003)
    assert default_tolerance(True).value(0.96, None) == pytest.approx(0.0096)


@pytest.mark.parametrize("given", ["abc", "-1%", "nan", -0.1, float("inf"), "1 percent"])
def test_other_words_are_refused(given):
    with pytest.raises(ConfigError, match='give a share such as "1%"'):
        parse_tolerance(given, True)


@pytest.mark.parametrize("given", ["100%", "150 %"])
@pytest.mark.parametrize("higher", [True, False])
def test_all_of_it_is_no_tolerance(given, higher):
    with pytest.raises(ConfigError, match=f'^The tolerance is "{given}"; anything would be within all of it'):
        parse_tolerance(given, higher)


def test_points_are_for_accuracies():
    with pytest.raises(ConfigError, match="in points is for accuracies"):
        parse_tolerance("1 point", False)


def test_a_gain_needs_a_base():
    with pytest.raises(ConfigError, match="base's metric is not known"):
        Tolerance(of_gain=0.05).value(2.0, None)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95, -1])
def test_confidence_is_a_probability(confidence):
    with pytest.raises(ConfigError, match="confidence is"):
        Rule(default_tolerance(True), True, confidence)
