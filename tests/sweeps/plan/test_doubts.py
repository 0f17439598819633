"""Values that can be used and that no one can have meant."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rankwise import LoRAConfig, Training, sweep
from rankwise.errors import ConfigError


def run(configs: Any, **given: Any) -> list[str]:
    x = torch.randn(40, 6)
    found = sweep(
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
        configs,
        train=(x, (x.sum(1) > 0).long()),
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="none"),
        baseline=False,
        lrs=[1e-2],
        plan="grid",
        seeds=1,
        training=Training(epochs=1),
        progress="quiet",
        **given,
    )
    return [note for note in found.results["notes"] if "rank" in note and "above" in note]


@pytest.mark.parametrize(
    ("configs", "doubted"),
    [
        ([5], []),
        ([64, 5], ["r64"]),
        ([LoRAConfig(r=3, target_modules=["2"]), 2], ["r3"]),
        ([LoRAConfig(r=1, rank_pattern={"0": 9, "2": 9})], ["r1"]),
        ([LoRAConfig(r=1, rank_pattern={"0": 9})], []),
    ],
)
def test_ranks_above_the_weights(configs: Any, doubted: list[str]) -> None:
    notes = run(configs)
    assert len(notes) == len(doubted)
    for note, name in zip(notes, doubted, strict=True):
        assert f'Configuration "{name}" has rank' in note


@pytest.mark.parametrize("tolerance", [1.0, 5, "150%", "100 points"])
def test_a_tolerance_above_what_an_accuracy_can_be(tolerance: Any) -> None:
    def accuracy(outputs: Any, batch: Any) -> Any:
        return (outputs.argmax(-1) == batch[1]).double()

    with pytest.raises(ConfigError, match=r'The tolerance is ".*"; (the metric lies between 0 and 1|anything)'):
        run([1], metric=accuracy, metric_name="accuracy", tolerance=tolerance)
