"""The GPU benchmark runs on a CPU too, small and without a graph."""

import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu() -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--repeats", "1"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "0.12B" in output
    assert "1B, 16 adapters" in output
    assert "pack of one" in output


def test_a_cpu_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu"])
    with pytest.raises(SystemExit, match="add --tiny"):
        gpu.main()


def test_a_layer_alone_runs() -> None:
    pytest.importorskip("peft")
    lines = gpu.part_layer("cpu", 1, True, time.perf_counter)
    assert "pack of one" in lines[-1]
