"""`inject` on the models people have: every family of timm, and small random configurations of transformers.

    python benchmarks/model_zoo.py [--kinds linear,all] [--only PATTERN] [--limit N] [--markdown FILE] [--record]

Each model is made with random weights and checked in a process of its own, one at a time: output unchanged bit for bit at
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
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from zoo import timm_models, transformers_models
from zoo.checks import COLUMNS, Result, check
from zoo.entry import Entry
from zoo.kinds import KINDS


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
    """Check one model in a process of its own, which is ended when its time is up."""
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
    result.figures["seconds"] = time.perf_counter() - start
    return result


def _work(sender: Connection, entry: Entry, kinds: str, with_peft: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        result = check(entry, kinds, with_peft)
    except Exception as error:
        # Whatever it is goes into the table: an exception that is not Rankwise's own is a fault.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        result = Result(entry.name, kinds, "wrong", note=f"{type(error).__name__} at {where}: {str(error)[:160]}")
    sender.send(result)


def line(result: Result) -> str:
    """One row of the table; what is "-" with a reason is explained below it."""
    marks = [result.checks.get(column, "") for column in COLUMNS]
    cells = [mark if mark in ("ok", "") else "-" if mark[0] == "-" else "WRONG" for mark in marks]
    figures = [f"{result.figures[name]:.0e}" if name in result.figures else "" for name in ("effect", "merge")]
    numbers = [str(result.adapted), str(result.unreached), str(sum(result.left_out.values()))]
    return "| " + " | ".join([result.name, result.kinds, result.status, *numbers, *figures, *cells]) + " |"


def table(results: list[Result]) -> Iterator[str]:
    """Lay the results out: figures of the whole, the table, and what is behind every mark that isn't "ok"."""
    for kinds in dict.fromkeys(result.kinds for result in results):
        part = [result for result in results if result.kinds == kinds]
        count = Counter(result.status for result in part)
        compared = [r for r in part if r.checks.get("reads peft") == "ok" and r.checks.get("read by peft") == "ok"]
        usable = len(part) - count["unusable"] - count["no such layer"]
        share = count["refused"] / usable if usable else 0.0
        yield (
            f"- `{kinds}`: {len(part)} models; {count['right']} right, {count['refused']} refused ({share:.1%} of those "
            f"with such a layer), {count['wrong']} wrong, {count['no such layer']} without such a layer, "
            f"{count['time']} out of time, {count['unusable']} that don't run; peft agrees both ways on {len(compared)}."
        )
        left = Counter[str]()
        for result in part:
            left.update(result.left_out)
        yield from (f"  - left out: {number} layers, {why}" for why, number in left.most_common())
    yield ""
    header = ["model", "kinds", "status", "adapted", "not reached", "left out", "effect", "merge error", *COLUMNS]
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from map(line, results)
    yield ""
    for result in results:
        if result.note:
            yield f"- {result.name} ({result.kinds}), {result.status}: {result.note}"
        yield from (
            f"- {result.name} ({result.kinds}), {column}: {text[2:]}"
            for column, text in result.checks.items()
            if text.startswith("- ")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="linear, all (also convolutions and embeddings) or both"
    )
    parser.add_argument("--only", default="*", help="names or globs of models, with commas between")
    parser.add_argument("--limit", type=int, help="the first N models only")
    parser.add_argument("--seconds", type=float, default=300, help="time for one model")
    parser.add_argument("--no-peft", action="store_true", help="leave out the comparison with peft")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm_up()
    results: list[Result] = []
    for entry in chosen(arguments.only, arguments.limit):
        for kinds in arguments.kinds.split(","):
            results.append(in_process(entry, kinds, not arguments.no_peft, arguments.seconds))
            print(line(results[-1]), results[-1].note[:200], flush=True)
    names = ("torch", "transformers", "peft", *(["timm"] if timm_models.available() else []))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    given = " ".join(word for word in sys.argv[1:] if word != "--record")
    text = "\n".join(
        [
            f"\n## {datetime.now(UTC):%Y-%m-%d} model_zoo.py {given}".rstrip(),
            "",
            f"{versions}, Python {platform.python_version()}, {platform.machine()} CPU, 1 thread.",
            "",
            *table(results),
            "",
        ]
    )
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text.lstrip(), encoding="utf-8")
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)
    sys.exit(any(result.status == "wrong" for result in results))


if __name__ == "__main__":
    main()
