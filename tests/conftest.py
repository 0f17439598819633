"""What every test shares: no network, no window, repeatable examples, and where full-size data lies."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before a test imports what reads them. With one thread and in MKL's reproducible mode a product's sums have one
# order, wherever tensors lie in memory and however busy the machine is. What isn't promised even so: tests/rounding.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).parent.parent

# Examples are drawn from the test's own name, so a failure repeats; a slow machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with full-size data sets (MNIST and others); the test is skipped where there is none."""
    root = Path(os.environ.get("RANKWISE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"Full-size data is not at {root}; set RANKWISE_DATA to its folder.")
    return root
