"""The sbatch files of docs/scale.md, with a stand-in for Slurm that runs what they submit, in turn or all at once."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import main
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
