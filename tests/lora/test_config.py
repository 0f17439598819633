"""LoRAConfig: its defaults, its scale, and what it refuses."""

from dataclasses import FrozenInstanceError

import pytest

from rankwise.errors import ConfigError
from rankwise.lora import LoRAConfig


def test_defaults_are_the_documented_ones():
    config = LoRAConfig()
    assert (config.r, config.alpha, config.dropout, config.target_modules) == (8, 32.0, 0.0, "all-linear")
    assert config.scale() == 4.0


def test_scale_by_name_and_for_other_numbers():
    assert LoRAConfig(r=16, alpha=8.0, scaling="alpha/sqrt(r)").scale() == 2.0
    assert LoRAConfig().scale(r=2, alpha=1.0) == 0.5


def test_a_config_is_never_edited():
    with pytest.raises(FrozenInstanceError):
        LoRAConfig().r = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0; a rank is a whole number of at least 1"),
        ({"r": True}, "r is True"),
        ({"rank_pattern": {"q": -1}}, "r is -1"),
        ({"alpha": float("nan")}, "alpha is nan; it must be a finite number"),
        ({"alpha_pattern": {"q": float("inf")}}, "alpha is inf"),
        ({"alpha": -1e39}, r"alpha is -1e\+39; it must be a finite number that float32 holds"),
        ({"dropout": 1.0}, r"dropout is 1.0; a probability in \[0, 1\)"),
        ({"init": "kaimin"}, 'init "kaimin" is not known; there are .* Did you mean "kaiming"'),
        ({"scaling": "alpha"}, 'scaling "alpha" is not known; there are "alpha/r"'),
        ({"target_modules": ()}, "target_modules is empty"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)
