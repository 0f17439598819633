"""`inject` on the models people have: every family of timm, and small random configurations of transformers.

    python benchmarks/model_zoo.py [--kinds linear,all] [--only PATTERN] [--limit N] [--results FILE] [--record]

Each model is made with random weights and checked in its own process, one at a time: output unchanged bit for bit at
B = 0; with random A and B, eval equal to training mode without randomness; a gradient for every A and B that the output
depends on; merged equal to unmerged; unmerge, files and eject exact; mode flags and base untouched; the same outputs
and keys as peft, both ways. `zoo/checks.py` holds the checks. timm is needed without torchvision:
`pip install --no-deps timm`; without timm its families are left out.

Exit code 1 where anything is wrong.
"""

import argparse
import fnmatch
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from zoo import timm_models, transformers_models
from zoo.checks import Result, check
from zoo.entry import Entry
from zoo.kinds import KINDS
from zoo.tables import append, line, read, summary, table

MOST_MEMORY = 12 * 2**30
"""Bytes that the process of one model may take."""


def chosen(only: str, limit: int | None) -> list[Entry]:
    """Return the models whose name matches."""
    everything = (timm_models.entries() if timm_models.available() else []) + transformers_models.entries()
    patterns = [pattern if "*" in pattern else f"*{pattern}*" for pattern in only.split(",")]
    found = [entry for entry in everything if any(fnmatch.fnmatch(entry.name, pattern) for pattern in patterns)]
    return found[:limit]


def warm_up() -> None:
    """Import once, before the processes are forked, what all of them need."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    del peft
    if timm_models.available():
        timm_models.load()


def in_process(entry: Entry, kinds: str, with_peft: bool, seconds: float) -> Result:
    """Check one model in its own process, which is ended when its time is up."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(sender, entry, kinds, with_peft))
    start = time.perf_counter()
    worker.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            result = receiver.recv()
        else:
            result = Result(entry.name, kinds, "time", note=f"more than {seconds:.0f} s")
    except EOFError:
        result = Result(entry.name, kinds, "wrong", note="the process died")
    if worker.is_alive() and result.status == "time":
        worker.kill()
    worker.join()
    result.group = entry.kind
    result.figures["seconds"] = time.perf_counter() - start
    return result


def _work(sender: Connection, entry: Entry, kinds: str, with_peft: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    try:
        result = check(entry, kinds, with_peft)
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            note = f"The checks of it take more than {MOST_MEMORY >> 30} GiB"
            sender.send(Result(entry.name, kinds, status="unusable", note=note))
            return
        # Whatever it is goes into the table: an exception that is not Rankwise's own is a fault.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        result = Result(entry.name, kinds, "wrong", note=f"{type(error).__name__} at {where}: {str(error)[:160]}")
    sender.send(result)


def heading(arguments: argparse.Namespace) -> list[str]:
    """What was run, and with which versions."""
    names = ("torch", "transformers", "peft", *(["timm"] if timm_models.available() else []))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    given = f" --only {arguments.only}" * (arguments.only != "*") + " --no-peft" * arguments.no_peft
    return [
        f"\n## {datetime.now(UTC):%Y-%m-%d} model_zoo.py{given}",
        "",
        f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="linear, all (also convolutions and embeddings) or both"
    )
    parser.add_argument("--only", default="*", help="names or globs of models, with commas between")
    parser.add_argument("--limit", type=int, help="the first N models only")
    parser.add_argument("--seconds", type=float, default=300, help="time for one model")
    parser.add_argument("--no-peft", action="store_true", help="leave out the comparison with peft")
    parser.add_argument("--results", type=Path, help="write results to this file, and go on from those it has")
    parser.add_argument("--record", action="store_true", help="append the summary to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm_up()
    results: list[Result] = []
    known = {(result.name, result.kinds): result for result in (read(arguments.results) if arguments.results else [])}
    for entry in chosen(arguments.only, arguments.limit):
        for kinds in arguments.kinds.split(","):
            result = known.get((entry.name, kinds))
            if result is None:
                result = in_process(entry, kinds, not arguments.no_peft, arguments.seconds)
                print(line(result), result.note[:200], flush=True)
                if arguments.results:
                    append(arguments.results, result)
            results.append(result)
    print("\n".join(["", *table(results)]))
    text = "\n".join([*heading(arguments), "", *summary(results)])
    print(text)
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)
    sys.exit(any(result.status == "wrong" for result in results))


if __name__ == "__main__":
    main()
