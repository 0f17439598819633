"""Settings that can't be used are refused with the value and the rule."""

import math
from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest

from rankwise.errors import ConfigError
from rankwise.pack.optimisers import SGD, AdamW, Muon, optimiser_of
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
        ({"betas": (0.9, 1.0)}, r"betas is \[0\.9, 1\.0\]; both must be at least 0 and below 1"),
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"nesterov": True}, "Nesterov's step needs a momentum"),
    ],
)
def test_an_optimiser_refuses_its_own_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SGD(**settings)


def test_an_optimiser_is_carried_whole() -> None:
    whole = Training(optimiser=SGD(momentum=0.9, nesterov=True))
    assert whole == Training(optimiser="sgd", momentum=0.9, nesterov=True)
    assert replace(whole, epochs=3).optimiser == SGD(momentum=0.9, nesterov=True)
    assert replace(whole, momentum=0.5).optimiser == SGD(momentum=0.5, nesterov=True)
    assert replace(whole, optimiser="adamw").optimiser == AdamW()


def test_the_record_is_flat_and_has_the_settings_of_every_optimiser() -> None:
    record = Training(lr=1e-3, optimiser=Muon(eps=1e-6), epochs=2).record()
    assert list(record) == [
        *("lr", "weight_decay", "optimiser", "betas", "eps", "momentum", "nesterov", "clip", "batch_size", "epochs"),
        *("schedule", "horizon", "warmup", "patience", "weights"),
    ]
    assert (record["optimiser"], record["eps"], record["momentum"]) == ("muon", 1e-6, 0.0)


def test_an_optimiser_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"optimiser is 3; give a name \(adamw, sgd, muon\) or settings such as"):
        unwrap(optimiser_of)(3)  # the checks of types that tests add come before


def test_defaults_are_fit_for_use() -> None:
    assert Training(lr=1e-3).weights == "best"
