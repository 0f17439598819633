"""The examples run, do what they say, and stay short."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
MOST_LINES = 60


def results_of(name, *arguments):
    """Run an example's `main` in this process, from a module that pickle finds."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(*arguments)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_they_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_plain_torch():
    results = results_of("plain_torch")
    assert results["base"] < 0.5 < 0.9 < results["adapted"]
    assert results["loaded"] == results["adapted"]
    assert results["merged"] == pytest.approx(results["adapted"], abs=0.005)


# Lightning calls what torch is about to drop, and advises more workers than the data needs.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning():
    pytest.importorskip("lightning")
    results = results_of("lightning_module")
    assert results["base"] < 0.5 < 0.85 < results["adapted"]


def test_transformers_trainer():
    results = results_of("transformers_trainer")
    assert results["last"] < 0.8 * results["first"]
    assert results["evaluated"] < 0.8 * results["first"]
    assert results["difference"] == 0


@pytest.mark.usefixtures("compilable")
def test_compiled():
    results = results_of("compiled", "eager")  # the back end that needs no C++ compiler; graphs and guards are the same
    assert results["last"] < 0.8 * results["first"]
    assert max(results[name] for name in ("difference", "after new values", "disabled")) < 1e-5


def test_copies_and_checkpoints():
    assert set(results_of("copies_and_checkpoints").values()) == {True}


def test_distributed():
    results = results_of("distributed")
    assert results["last"] < 0.5 * results["first"]


@pytest.mark.slow
def test_the_notebook_of_the_digits():
    """Its cells, in order, with less training; the text of every cell stays as it is otherwise."""
    notebook = json.loads((EXAMPLES / "digits.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    less = {
        "range(5):": "range(1):",
        "[1, 2, 4, 8, 16, 32, 64]": "[1, 8]",
        "epochs=12": "epochs=2",
        "seeds=3": "seeds=1",
    }
    for text, instead in less.items():
        assert sum(cell.count(text) for cell in cells) == 1
        cells = [cell.replace(text, instead) for cell in cells]
    scope = {}
    for i, cell in enumerate(cells):
        exec(compile(cell, f"cell {i}", "exec"), scope)
    assert [c.r for c in scope["found"].results.configurations] == [1, 8, None]
    ranks = {c.r: c.trainable_parameters for c in scope["found"].results.configurations}
    assert ranks[8] == 8 * ranks[1]
