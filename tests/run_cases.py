"""Run every script of the cases (`make cases`): each exits 0 where Rankwise does the right thing, 1 where it fails.

    python tests/run_cases.py [FOLDER] [WORD ...]

FOLDER is `../shared/cases` by default; where there is none, nothing runs. With words, only scripts whose path holds
one of them run. Files whose name begins with "_" are imported by others. Exits 1 when a script fails.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 900


def scripts_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".sh") and path.name[0] != "_")


def run(script: Path) -> tuple[bool, str]:
    """Whether it exits 0, and the last line that it printed."""
    interpreter = [sys.executable] if script.suffix == ".py" else ["bash"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    try:
        finished = subprocess.run(
            [*interpreter, str(script)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False, f"still running after {SECONDS} s"
    lines = finished.stdout.strip().splitlines()
    return finished.returncode == 0, lines[-1] if lines else f"exit code {finished.returncode}"


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY.parent / "shared" / "cases"
    if not folder.is_dir():
        print(f"No cases at {folder}; nothing to run.")
        return 0
    words = sys.argv[2:]
    scripts = [path for path in scripts_in(folder) if not words or any(word in str(path) for word in words)]
    failed = 0
    for script in scripts:
        begun = time.monotonic()
        right, last = run(script)
        failed += not right
        name, seconds = script.relative_to(folder), time.monotonic() - begun
        print(f"{'ok  ' if right else 'FAIL'} {name} ({seconds:.0f} s){'' if right else f': {last[:160]}'}", flush=True)
    print(f"{len(scripts) - failed} of {len(scripts)} cases right")
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main())
