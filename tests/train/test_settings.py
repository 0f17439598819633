"""Settings that can't be used are refused with the value and the rule."""

import math
from typing import Any

import pytest

from rankwise.errors import ConfigError
from rankwise.train.settings import Training


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.0}, r"learning rate is 0\.0; it must be a positive number"),
        ({"lr": math.inf}, "learning rate is inf"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"momentum": 1.0, "optimiser": "sgd"}, r"momentum is 1\.0; it must be at least 0 and below 1"),
        ({"momentum": 0.9}, r"momentum is 0\.9, a setting of sgd; optimiser=\"adamw\" has betas, eps\."),
        ({"betas": (0.5, 0.9), "optimiser": "sgd"}, r"betas is \(0\.5, 0\.9\), a setting of adamw"),
        ({"nesterov": True, "optimiser": "sgd"}, "Nesterov's step needs a momentum"),
        ({"optimiser": "sgdm"}, 'Did you mean "sgd"'),
        ({"betas": (0.9, 1.0)}, r"betas are \(0\.9, 1\.0\); both must be at least 0 and below 1"),
        ({"eps": 0.0}, r"eps is 0\.0; it must be a positive number"),
        ({"clip": 0.0}, r"clip is 0\.0; it must be a positive norm"),
        ({"clip": math.nan}, "clip is nan"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"warmup": -1}, "warmup is -1; it must be a whole number of steps"),
        (
            {"schedule": "cosin"},
            'schedule "cosin" is not known; there are constant, cosine, linear, plateau. Did you mean "cos',
        ),
        ({"weights": "first"}, 'weights "first" is not known; there are best, last'),
    ],
)
def test_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**{"lr": 1e-3, **changed})


def test_defaults_are_fit_for_use() -> None:
    assert Training(lr=1e-3).weights == "best"
