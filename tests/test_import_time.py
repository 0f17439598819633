"""What starting up loads, seen in `sys.modules` of a fresh process; no time is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rankwise

SRC = Path(__file__).parent.parent / "src"
HEAVY = ["matplotlib", "scipy", "rich", "jinja2", "safetensors", "cyclopts", "transformers", "peft", "yaml"]


def printed_by(code: str) -> Any:
    """What `code` prints last on standard error, as JSON, in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def loaded_after(code: str) -> set[str]:
    """The modules that `code` leaves in `sys.modules` of a fresh interpreter."""
    return set(printed_by(f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"))


STEPS = """
import io, json, sys
import rankwise
found = {"the package": [*sys.modules]}
import torch  # which may load some of the others by itself, where they are installed
found["torch"] = [*sys.modules]
for name in rankwise.__all__:  # a sweep draws figures and a page: that is what it is for
    if not name.lower().startswith("sweep"):
        getattr(rankwise, name)
found["every name"] = [*sys.modules]
from rankwise.show.live import progress
progress("plain", io.StringIO())
progress("quiet")
found["plain progress"] = [*sys.modules]
from rankwise.train.machine.memory import peak_bytes
layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
rankwise.inject(layer, rankwise.LoRAConfig(r=1))
peak_bytes(lambda: layer(torch.ones(1, 2)), torch.device("cpu"))
found["modes"] = [*sys.modules]
import rankwise.api, rankwise.cli
found["names"] = [name for name in dir(rankwise) if name[0] != "_"]
print(json.dumps(found), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """What one fresh interpreter has loaded after each of several steps."""
    return printed_by(STEPS)


def test_import_loads_nothing_heavy(found: dict[str, list[str]]):
    assert not {*found["the package"]} & {*HEAVY, "torch"}


def test_public_names_load_only_torch(found: dict[str, list[str]]):
    assert not ({*found["every name"]} - {*found["torch"]}) & {*HEAVY}


def test_rich_is_loaded_for_the_live_table_only(found: dict[str, list[str]]):
    assert "rich" not in {*found["plain progress"]} - {*found["torch"]}


def test_modes_that_see_operations_do_not_load_torchs_compiler(found: dict[str, list[str]]):
    """A second of every command: torch imports it for each mode that doesn't say otherwise."""
    assert "torch._dynamo" not in {*found["modes"]} - {*found["torch"]}


def test_submodules_add_no_public_names(found: dict[str, list[str]]):
    assert found["names"] == sorted(rankwise.__all__)


def test_help_does_not_load_torch():
    code = """
sys.argv = ["rankwise", "--help"]
from rankwise.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
if code:
    raise SystemExit(code)
"""
    assert not loaded_after(code) & {"torch", "scipy", "matplotlib", "transformers"}
