"""What starting up loads, seen in `sys.modules` of a fresh process; no time is measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"
HEAVY = ["matplotlib", "scipy", "rich", "jinja2", "safetensors", "cyclopts", "transformers", "peft", "yaml"]


def loaded_after(code: str) -> set[str]:
    """The modules that `code` leaves in `sys.modules` of a fresh interpreter."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    assert not loaded_after("import rankwise") & {*HEAVY, "torch"}


def test_public_names_load_only_torch():
    # A sweep draws figures and a page: that is what it is for.
    others = "[name for name in rankwise.__all__ if not name.lower().startswith('sweep')]"
    every_name = f"import rankwise\nfor name in {others}: getattr(rankwise, name)"
    # torch may load some of them by itself where they are installed.
    assert not (loaded_after(every_name) - loaded_after("import torch")) & set(HEAVY)


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
