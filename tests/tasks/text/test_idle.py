"""Settings that would have no effect are refused where they are given."""

from typing import Any

import pytest
from composed_options import compose

from rankwise.errors import ConfigError
from rankwise.sweeps.choose.deciding import Deciding
from rankwise.tasks.text.options import SweepOptions, TrainOptions

CLASSIFY: dict[str, Any] = {"model": "bert", "task": "classify", "data": "a.csv"}
SFT: dict[str, Any] = {**CLASSIFY, "task": "sft"}


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({**CLASSIFY, "separator": " "}, "separator"),
        ({**CLASSIFY, "chat_template": "x.jinja"}, "chat-template"),
        ({**CLASSIFY, "loss_on": "all"}, "loss-on"),
        ({**SFT, "labels": "one"}, "labels"),
        ({**SFT, "pooling": "mean"}, "pooling"),
        ({**SFT, "head_rate": 1.0}, "head-rate"),
        ({**SFT, "validation": "b.csv", "validation_share": 0.2}, "validation-share"),
        ({**SFT, "test": "b.csv", "test_share": 0.2}, "test-share"),
        ({**SFT, "baseline": False, "baseline_lr": (1e-3,)}, "baseline-lr"),
        ({**SFT, "search": 0, "search_rungs": (1, 2)}, "search-rungs"),
    ],
)
def test_a_setting_without_effect(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"--{flag} has no effect .*; leave it out"):
        compose(SweepOptions, **options)


@pytest.mark.parametrize("name", ["alpha", "dropout", "target_modules", "scaling"])
def test_an_adapter_that_is_trained_on_has_its_own(name: str) -> None:
    given: dict[str, Any] = {
        "alpha": (8.0,),
        "dropout": 0.1,
        "target_modules": (("query",),),
        "scaling": ("alpha/sqrt(r)",),
    }
    with pytest.raises(ConfigError, match="has no effect with --init-from, which brings the adapter's own"):
        compose(TrainOptions, **CLASSIFY, init_from=("a",), **{name: given[name]})
    compose(SweepOptions, **CLASSIFY, init_from=("a",), **{name: given[name]})  # the ranks of a sweep take it


@pytest.mark.parametrize("name", ["max_runs", "max_minutes", "max_parameters"])
def test_a_grid_has_no_budget(name: str) -> None:
    given: dict[str, Any] = {name: 5}
    with pytest.raises(ConfigError, match=f"{name} has no effect in a grid, which trains everything"):
        Deciding(plan="grid", **given)
