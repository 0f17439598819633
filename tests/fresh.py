"""Functions called in their own process, without the suite's checks of types, that can be signalled or killed.

Each process is a fork of one server that starts as a fresh interpreter and imports torch and the package once: a
subprocess of its own takes 3 to 5 CPU seconds to get as far. Signals, exit codes, output and `os.environ` are
as in a subprocess.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
USED_LATE = ["rankwise.loggers.table", "rankwise.tasks.digits.run", "torch.fx.experimental.symbolic_shapes", "yaml"]
"""What a run of the digits imports when it needs it: half a second of each process."""
CONTEXT.set_forkserver_preload(["killed_run", "small_sweep", *USED_LATE])


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    """A process, and the files that it prints into."""

    process: BaseProcess
    stdout: Path
    stderr: Path

    def lines(self) -> Iterator[str]:
        """The lines of standard error, each as soon as it is whole, until the process has ended."""
        with self.stderr.open() as stream:
            line, ended = "", False
            while True:
                line += stream.readline()
                if line.endswith("\n"):
                    yield line
                    line = ""
                elif ended:
                    return
                else:
                    self.process.join(0.02)
                    ended = not self.process.is_alive()

    def end(self) -> Ended:
        """Wait for the process."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return Ended(code, self.stdout.read_text(), self.stderr.read_text())


def _child(function: Callable[..., Any], arguments: tuple[Any, ...], stdout: str, stderr: str) -> None:
    """Call a function as the whole of a program; an int that it returns is the exit code."""
    for stream, path in ((sys.stdout, stdout), (sys.stderr, stderr)):
        stream.flush()
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)
    # A shell without job control starts its background jobs, and all that they start, without Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = function(*arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code if isinstance(code, int) else code is not None)


def _serve() -> None:
    """Start the server, if none runs: its imports find the package and the tests by PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before:
            os.environ["PYTHONPATH"] = before


@contextmanager
def start(function: Callable[..., Any], *arguments: Any) -> Generator[Running]:
    """Start a process that calls a function of a module on the path; it is killed at the end if it still runs."""
    _serve()
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        stdout.touch()
        stderr.touch()
        process = CONTEXT.Process(target=_child, args=(function, arguments, str(stdout), str(stderr)))
        process.start()
        try:
            yield Running(process, stdout, stderr)
        finally:
            process.kill()
            process.join()
            with contextlib.suppress(ValueError):
                process.close()


def call(function: Callable[..., Any], *arguments: Any) -> Ended:
    """Call a function of a module on the path in its own process, and wait for its end."""
    with start(function, *arguments) as running:
        return running.end()
