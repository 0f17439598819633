"""The checks of `benchmarks/model_zoo.py`: a sample always, all models among the slow tests; they find faults."""

import pytest
import torch
from model_zoo import chosen, in_process
from torch import nn
from zoo import peft_checks, timm_models
from zoo.checks import COLUMNS, check
from zoo.entry import Entry
from zoo.kinds import KINDS
from zoo.tables import append, line, read, summary, table

import rankwise
from rankwise.lora import adapter_tensors

# Models and peft warn of what is about to change in torch and transformers.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = ("transformers/gpt2", "transformers/bert", "transformers/t5", "transformers/vit", "transformers/wav2vec2")
KNOWN = {"right", "refused", "no such layer", "unusable"}
"""Unusable is one model, whose checks take more memory than they are given."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_right(name):
    result = check(chosen(name, None)[0], "linear")
    assert (result.status, result.note) == ("right", "")
    assert set(result.checks) == set(COLUMNS)
    assert result.adapted > 0 == result.unreached


@pytest.mark.slow
def test_a_family_of_timm_is_right():
    if not timm_models.available():
        pytest.skip("timm is not installed; pip install --no-deps timm")
    result = check(chosen("timm/pvt_v2", None)[0], "linear")
    assert (result.status, result.note) == ("right", "")


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("entry", chosen("*", None), ids=lambda entry: entry.name)
def test_every_model_is_right_or_refused(entry, kinds):
    result = in_process(entry, kinds, True, 600)
    assert result.status in KNOWN, result.note


class Mean(nn.Module):
    """Reads the weight of its layer without calling it, every second time, and past every adapter."""

    def __init__(self, forgets):
        super().__init__()
        self.layer, self.forgets = nn.Linear(4, 4), forgets

    def forward(self, x):
        called = self.layer(x)
        return nn.functional.linear(x, self.layer._parameters["weight"].data) + called if self.forgets else called


@pytest.mark.parametrize(("forgets", "status"), [(False, "right"), (True, "wrong")])
def test_an_adapter_that_misses_a_use_of_its_weight_is_found(forgets, status):
    entry = Entry("mean", "test", lambda: nn.Sequential(Mean(forgets)), lambda: (torch.randn(2, 4),))
    result = check(entry, "linear")
    assert result.status == status
    assert result.checks["merge"].startswith("differs" if forgets else "ok")


class Doubled(nn.Linear):
    """A forward of its own: twice W + delta here, twice W plus delta in peft."""

    def forward(self, x):
        return 2.0 * super().forward(x)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Gained(nn.Conv1d):
    """A parameter beside the weight, which peft makes for A and B too."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1), 2.0))

    def forward(self, x):
        return nn.functional.conv1d(x, self.gain * self.weight, self.bias)


PEFTS_FAULTS = {
    "_OTHERWISE": (lambda: nn.Sequential(Doubled(4, 4), nn.Linear(4, 4)), (2, 4)),
    "_TWICE": (lambda: nn.Sequential(Attends(), nn.Linear(4, 4)), (2, 3, 4)),
    "_NOT_CALLED": (lambda: nn.Sequential(Mean(False), Reads(), nn.Linear(4, 4)), (2, 4)),
    "_OWN_CLASS": (lambda: nn.Sequential(Gained(2, 2, 1), nn.Conv1d(2, 2, 1)), (2, 2, 4)),
}


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize("fault", PEFTS_FAULTS)
def test_a_fault_of_pefts_is_told_apart(fault):
    make, shape = PEFTS_FAULTS[fault]
    result = check(Entry(fault, "test", make, lambda: (torch.randn(shape),)), "all")
    assert result.status == "right"
    assert result.checks["reads peft"] == result.checks["read by peft"] == getattr(peft_checks, fault)


@pytest.mark.parametrize("fault", ["_OTHERWISE", "_TWICE", "_NOT_CALLED"])
def test_a_fault_of_pefts_excuses_no_other(fault, monkeypatch):
    make, shape = PEFTS_FAULTS[fault]
    entry = Entry(fault, "test", make, lambda: (torch.randn(shape),))
    reads = rankwise.load_adapter

    def reads_wrongly(model, folder):
        reads(model, folder)
        with torch.no_grad():
            adapter_tensors(model)[[*adapter_tensors(model)][-1]][1].mul_(1.01)

    monkeypatch.setattr(rankwise, "load_adapter", reads_wrongly)
    assert check(entry, "all").checks["reads peft"].startswith("apart by ")


def test_the_table_says_what_was_seen(tmp_path):
    entries = {
        "convolution": lambda: nn.Sequential(nn.Conv1d(2, 2, 1)),
        "linear": lambda: nn.Sequential(nn.Linear(4, 4)),
        "wrong": lambda: nn.Sequential(Mean(True)),
        "not merged": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    }
    batches = {"convolution": (2, 2, 4)}
    results = [
        check(Entry(name, "test", make, lambda name=name: (torch.randn(batches.get(name, (2, 4))),)), "linear", False)
        for name, make in entries.items()
    ]
    text = "\n".join(summary(results))
    assert "|  | 4 | 2 | 0 | 1 | 0 | 1 | 0 | 3 | 1 | 33.3% |" in text
    assert line(results[1]).startswith("| linear | linear | right | 1 | 0 | 0 |")
    assert "- wrong (linear), wrong: merge: differs by" in "\n".join(table(results))
    file = tmp_path / "results.jsonl"
    for result in results:
        append(file, result)
    assert list(table(read(file))) == list(table(results))
