"""What the README shows works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


FROM_PEFT = (ROOT / "docs" / "from-peft.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README + FROM_PEFT, re.DOTALL))
def test_python_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "my-adapter" in code:
        assert json.loads((tmp_path / "my-adapter" / "adapter_config.json").read_text())["r"] == 4


def test_make_has_the_commands() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "check"} <= {*targets}
    assert {*re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)} <= {*targets}


def test_commands_that_are_named_exist() -> None:
    from rankwise.cli import app

    commands = {*re.findall(r"`rankwise ([a-z]+)", README)}
    assert commands
    assert commands <= {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
