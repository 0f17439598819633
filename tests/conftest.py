"""What every test shares: no network, no window, repeatable examples, and where full-size data lies."""

import gc
import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from beartype._check.code import codemain
from hypothesis import settings

# Set before a test imports what reads them. With one thread and in MKL's reproducible mode a product's sums have one
# order, wherever tensors lie in memory and however busy the machine is. What isn't promised even so: tests/rounding.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import torch

from tables_only import write_tables

# Collecting makes a million objects that stay: the collector would scan them again and again, for a third of the time.
gc.disable()

# Which entry of a list beartype checks is drawn, but not from Python's own generator: packs look there for draws of
# models. First of all, as beartype keeps the checks that it has made for other packages.
codemain.getrandbits = random.Random(0).getrandbits  # pyright: ignore[reportPrivateImportUsage]

REPOSITORY = Path(__file__).parent.parent

# Examples are drawn from the test's own name, so a failure repeats; a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Ctrl-C interrupts, as tests that press it expect: in the background of a script it is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What has been imported and collected is left out of all later scans of the collector."""
    gc.freeze()
    gc.enable()


def seed(name: str) -> None:
    """Begin all random numbers anew with a seed that a name gives."""
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random numbers that tests draw are their own, whatever ran before; and only tests marked `draws` have a run's
    figures and page, which take longer to draw than a small run to train."""
    seed(item.nodeid)
    experiment = sys.modules.get("rankwise.experiment")
    if experiment is not None:
        draws = item.get_closest_marker("draws") is not None
        experiment.write_report = sys.modules["rankwise.report"].write_report if draws else write_tables


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """What several tests share is drawn from its own name too, and changes no draw of the test that comes first."""
    if fixturedef.scope == "function":
        return (yield)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed(f"{fixturedef.baseid}::{fixturedef.argname}")
    try:
        return (yield)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with full-size data sets (MNIST and others); the test is skipped where there is none."""
    root = Path(os.environ.get("RANKWISE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"Full-size data is not at {root}; set RANKWISE_DATA to its folder.")
    return root


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package without the suite's checks of types, which refuse a mistake before the package does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def compilable(unchecked: None) -> Iterator[None]:
    """The package as Dynamo can trace it, and nothing compiled before nor after."""
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
