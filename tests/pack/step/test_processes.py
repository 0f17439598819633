"""A pack that several processes train together comes to what one process comes to."""

from pathlib import Path

import pytest
import torch

import two_processes
from two_processes import PACKS, pack_of

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_updates_are_those_of_one_process(tmp_path: Path, world: int) -> None:
    """Batches of 7 rows, the last of 5, with dropout of the base and of the adapters: parts of 2 and 3 rows."""
    two_processes.run(two_processes.packs, tmp_path, world)
    for name, (rows_a_pass, optimiser) in PACKS.items():
        expected = pack_of(None, rows_a_pass, optimiser)
        for rank in range(world):
            found = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert found.keys() == expected.keys()
            for member, state in expected.items():
                for key, value in state.items():
                    torch.testing.assert_close(found[member][key], value, rtol=1e-10, atol=1e-10)
