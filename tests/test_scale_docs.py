"""The sbatch files of docs/scale.md, with a stand-in for Slurm that runs what they submit, in turn or all at once."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
from rankwise.sweeps.run.units.unit import ranges
from test_cli import folder_of_digits
from test_cli_work import FLAGS
from test_resume import contents, environment

DOCS = Path(__file__).parent.parent / "docs" / "scale.md"

SBATCH = """#!/bin/bash
array=
while [[ $1 == --* ]]; do case $1 in --array=*) array=${1#*=};; esac; shift; done
script=$1; shift
[ -n "$array" ] || exec bash $script "$@"
for part in ${array//,/ }; do for n in $(seq ${part%-*} ${part#*-}); do for copy in $COPIES; do
  SLURM_ARRAY_JOB_ID=1 SLURM_ARRAY_TASK_ID=$n bash $script "$@" >&2 &
  [ -n "$AT_ONCE" ] || wait
done; done; done
wait
echo 1
"""


def scripts(folder: Path) -> None:
    """Write the files of the page, and stand-ins for the commands that they call."""
    blocks = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", DOCS.read_text(), re.S)
    files = dict(zip(["next.sbatch", "unit.sbatch"], blocks, strict=True))
    files |= {"sbatch": SBATCH, "scontrol": '#!/bin/bash\necho "$@" >> requeued\n'}
    files |= {"rankwise": f'#!/bin/bash\nexec {sys.executable} -m rankwise "$@"\n'}
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("units", ["0", "3", "4-6", "0,2-3,7"])
def test_the_shell_loop_takes_every_range_of_units(tmp_path: Path, units: str) -> None:
    (tmp_path / "rankwise").write_text(
        f"#!/bin/bash\nif [ $3 != --next ]; then echo $4 >> done; exit; fi\n"
        f"[ -e asked ] && exit 10; touch asked; echo {units}\n"
    )
    (tmp_path / "rankwise").chmod(0o755)
    (loop,) = re.findall(r"```sh\n(while .*?)```", DOCS.read_text(), re.S)
    given = {**environment(), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", loop], cwd=tmp_path, env=given, check=True, timeout=60)
    assert ranges([int(line) for line in (tmp_path / "done").read_text().split()]) == units


@pytest.mark.slow
@pytest.mark.parametrize(("at_once", "copies"), [("", "1"), ("yes", "1 2")])
def test_an_array_comes_to_what_one_process_comes_to(tmp_path: Path, at_once: str, copies: str) -> None:
    data = folder_of_digits(tmp_path / "data")
    flags = ["digits", *FLAGS, "--data", str(data)]
    assert main([*flags, "--out", str(tmp_path / "one")]) == 0
    assert main([*flags, "--out", str(tmp_path / "run"), "--prepare"]) == 0
    scripts(tmp_path)
    given: dict[str, Any] = {**environment(), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    given |= {"AT_ONCE": at_once, "COPIES": copies}
    done = subprocess.run(
        ["sbatch", "next.sbatch", "run"], cwd=tmp_path, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "run") == contents(tmp_path / "one")
    assert (tmp_path / "run" / "table.md").exists()
