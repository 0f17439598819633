"""A Ray cluster's machines: those that can't take part are found before training."""

from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.locking import locked
from rankwise.sweeps.run.units.cluster import Machine, compare, this_machine


def test_machines_that_do_not_see_the_run_directory_are_found(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        here = this_machine(tmp_path / "run")
        assert here.holder is not None
        assert compare([here], here, tmp_path / "run") == []
        elsewhere = this_machine(tmp_path / "other")
        with pytest.raises(ConfigError, match=r"run can't be reached from .*file system that all machines share"):
            compare([here, elsewhere], here, tmp_path / "run")


def test_other_versions_are_named() -> None:
    here = Machine("a", "x", {"rankwise": "0.2", "torch": "2.13", "python": "3.11"})
    old = Machine("b", "x", {"rankwise": "0.1", "torch": "2.12", "python": "3.11"})
    assert compare([here, old, old], here, Path("run")) == [
        "b has rankwise 0.1, torch 2.12, and this machine 0.2, 2.13; the last bits of results may depend on that."
    ]
