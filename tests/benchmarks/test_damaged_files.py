"""Some hundred damaged files of `benchmarks/damaged_files.py`, and that its checks find faults."""

import json
import shutil

import damaged_files
import pytest
import torch
from damaged_files import CONFIG, DAMAGES, damaged, faults, outcome, table, write_sources

from rankwise import load_adapter
from rankwise.lora import adapter_tensors

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine is no hang."""
    monkeypatch.setattr(damaged_files, "LIMIT_S", 300.0)


def test_damaged_files_are_refused_or_right():
    results = list(damaged(100, seed=7))
    assert faults(results) == []
    assert {result.damage for result in results} == {*DAMAGES}
    assert {result.whose for result in results} == {"Rankwise", "peft", "peft, pickle"}
    assert {result.strict for result in results} == {"refused", "loaded"}
    assert len(table(results)) > len(DAMAGES)
    # Each of our own files that was loaded strictly said the same as before the damage: `outcome` compares.
    flipped = [result for result in results if (result.whose, result.damage) == ("Rankwise", "bits flipped")]
    assert len(flipped) > 6
    assert {result.strict for result in flipped} == {"refused"}


@pytest.fixture
def files(tmp_path):
    """A whole file of peft's and one of ours, each where it may be loaded: (source, folder)."""
    pairs = []
    for whose, source in write_sources(tmp_path / "sources")[::4][:2]:
        folder = tmp_path / "root" / whose
        shutil.copytree(source, folder)
        pairs.append((source, folder))
    return pairs


def judged(files, whose, strict=True):
    source, folder = files[whose == "peft"]
    return outcome(folder, source, whose, folder.parent, strict)


def test_whole_files_load(files):
    assert (judged(files, "Rankwise"), judged(files, "peft")) == ("loaded", "loaded")


def test_a_wrong_number_is_found(files, monkeypatch):
    def wrong(model, *args, **settings):
        report = load_adapter(model, *args, **settings)
        with torch.no_grad():
            adapter_tensors(model)["conv"][1][0, 0] += 1e-6
        return report

    monkeypatch.setattr(damaged_files, "load_adapter", wrong)
    assert judged(files, "peft") == "B of conv is not the file's"


def test_a_wrong_scale_is_found(files):
    path = files[1][1] / CONFIG
    fields = json.loads(path.read_text())
    load = damaged_files.load_adapter

    def behind(model, *args, **settings):
        report = load(model, *args, **settings)
        path.write_text(json.dumps({**fields, "lora_alpha": 9}))
        return report

    damaged_files.load_adapter = behind
    try:
        assert judged(files, "peft") == "loading wrote something"
        damaged_files.load_adapter = load
        assert judged(files, "peft") == "loaded"
        model = damaged_files.base()
        load(model, files[1][1])
        path.write_text(json.dumps(fields))
        assert damaged_files.misread(model, files[1][1]) == "the scale of tokens is not the file's"
    finally:
        damaged_files.load_adapter = load


def raising(error):
    def load(model, *args, **settings):
        raise error

    return load


def test_another_exception_and_a_hang_are_found(files, monkeypatch):
    monkeypatch.setattr(damaged_files, "load_adapter", raising(KeyError("x")))
    assert judged(files, "peft") == "KeyError: 'x'"
    monkeypatch.setattr(damaged_files, "LIMIT_S", 0.05)

    def endless(model, *args, **settings):
        while True:
            pass

    monkeypatch.setattr(damaged_files, "load_adapter", endless)
    assert judged(files, "peft") == "took more than 0.05 s"


def test_what_is_written_is_found(files, monkeypatch):
    def writing(model, folder, **settings):
        (folder.parent / "stray").touch()
        return load_adapter(model, folder, **settings)

    monkeypatch.setattr(damaged_files, "load_adapter", writing)
    assert judged(files, "peft") == "loading wrote something"


def test_a_damaged_file_of_our_own_that_passes_is_found(files, monkeypatch):
    monkeypatch.setattr(damaged_files, "unchanged", lambda folder, source: False)
    assert judged(files, "Rankwise") == "a damaged file of our own passed"
