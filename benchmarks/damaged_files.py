"""Damaged adapter files, ours and peft's: each is refused with an error of Rankwise's own, or loads as what it holds.

    python benchmarks/damaged_files.py [--files 10000] [--seed 0] [--record]

Files are cut short, have bits flipped, settings of wrong types, headers of tensor files that announce too much, or names
with `..`. Each is loaded strictly and leniently. A fault is any other exception, a load of more than ten seconds, a path
that appears or changes outside of what is written to, a tensor or scale that is not what the file says, or a damaged file
of our own that is read as a whole one.
"""

import argparse
import contextlib
import json
import math
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rankwise import LoRAConfig, inject, load_adapter, save_adapter
from rankwise.errors import RankwiseError
from rankwise.lora import adapter_tensors, trainable_parameters
from rankwise.lora.adapter import lora_of
from rankwise.lora.trained_modules import replacement_tensors

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
LIMIT_S = 10.0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.block = nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)})
        self.conv = nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.block["down"](self.block["up"](self.tokens(ids)).relu())
        return self.head(self.conv(x.mT).mT)


def base() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


NAMES = ["tokens", "block.up", "down", "conv"]
OURS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA, ranks": {"scaling": "alpha/sqrt(r)", "rank_pattern": {"block.up": 3}, "alpha_pattern": {"down": 5.0}},
    "DoRA": {"variant": "dora"},
    "whole": {"modules_to_save": "head", "bias": "all"},
}
THEIRS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA, ranks": {"use_rslora": True, "rank_pattern": {"block.up": 3}, "alpha_pattern": {r"^block\.do.*": 5}},
    "DoRA": {"use_dora": True},
    "whole": {"modules_to_save": ["head"], "bias": "all"},
}


def write_sources(folder: Path) -> list[tuple[str, Path]]:
    """Write whole files: (whose, folder)."""
    written: list[tuple[str, Path]] = []
    for name, settings in OURS.items():
        model = base()
        inject(model, LoRAConfig(r=2, target_modules=NAMES, **settings))
        with torch.no_grad():
            for parameter in trainable_parameters(model):
                parameter.normal_()
        written.append(("Rankwise", save_adapter(model, folder / f"ours {name}")))
    for name, settings in THEIRS.items():
        model = get_peft_model(base(), LoraConfig(r=2, target_modules=NAMES, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        place = folder / f"theirs {name}"
        model.save_pretrained(str(place))
        written.append(("peft", place))
    old = folder / "theirs in a pickle"
    shutil.copytree(folder / "theirs LoRA", old)
    torch.save(safetensors.torch.load_file(old / TENSORS), old / PICKLE)
    (old / TENSORS).unlink()
    return [*written, ("peft, pickle", old)]


# Damage

JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 1e308, float("nan"), float("inf"), 10**30, 2**63, "", "x", "(", "(a+)+$", ".*"),
    *("../..", "all-linear", "\ud800", "\x00", [], [[]], [None], ["../../x"], ["block.up"], [1, "a"], {}, {"a": {}}),
    *({"../x": 2}, {"(": 2}, {"up": "2"}, {"up": 0}, {"up": 3}, {".*": 3}, {"(.*)*": 1}, "a" * 5000, [["a"] * 50] * 50),
]


def tensor_file(folder: Path) -> Path:
    return next(folder / name for name in (TENSORS, PICKLE) if (folder / name).exists())


def cut(folder: Path, draw: random.Random) -> None:
    path = draw.choice([tensor_file(folder), folder / CONFIG])
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip(folder: Path, draw: random.Random) -> None:
    path = draw.choice([tensor_file(folder), tensor_file(folder), folder / CONFIG])
    content = bytearray(path.read_bytes())
    # Half of them in the first part, where names, shapes and places stand.
    end = len(content) if draw.random() < 0.5 else min(len(content), 2500)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        content[draw.randrange(end)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def move(folder: Path, draw: random.Random) -> None:
    """Bytes put in, taken away, or exchanged for others."""
    path = draw.choice([tensor_file(folder), folder / CONFIG])
    content = bytearray(path.read_bytes())
    at, n = draw.randrange(len(content)), draw.choice([1, 8, 100])
    content[at : at + draw.choice([0, n])] = draw.randbytes(draw.choice([0, n]))
    path.write_bytes(content)


def wrong_types(folder: Path, draw: random.Random) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    for _ in range(draw.choice([1, 1, 2, 4])):
        key = draw.choice([*fields, "use_new", "new_config", "brand_new"])
        if draw.random() < 0.1:
            fields.pop(key, None)
        else:
            fields[key] = draw.choice(JUNK)
    whole = fields if draw.random() < 0.97 else draw.choice(JUNK)
    (folder / CONFIG).write_text(json.dumps(whole))


def deep(folder: Path, draw: random.Random) -> None:
    """JSON in JSON, or far too much of it."""
    n = draw.choice([10, 1000, 100_000])
    text = draw.choice(
        ["[" * n, "[" * n + "]" * n, '{"a":' * n, "1" * n, '{"peft_type": "LORA", "r": ' + "9" * n + "}"]
    )
    (folder / CONFIG).write_text(text)


def header(folder: Path, draw: random.Random) -> None:
    """A header that announces too much, or another than the tensors have."""
    path = tensor_file(folder)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    kind = draw.randrange(4)
    if path.name == PICKLE or kind == 0:
        lengths = [0, 1, size - 1, size + 1, 10**8 - 1, 10**8 + 1, 2**31, 2**32 + size, 2**63, 2**64 - 1]
        path.write_bytes(draw.choice(lengths).to_bytes(8, "little") + content[8:])
        return
    entries = json.loads(content[8 : 8 + size])
    if kind == 1:
        for n in range(draw.choice([10, 5000])):
            entries[f"base_model.model.x{n}.lora_A.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    else:
        entry = entries[draw.choice([key for key in entries if key != "__metadata__"])]
        shapes = [[2**40, 2**40], [-1], [2**63], [0], [], [1] * 500, [12], [6, 2], [3, 4], "x", None]
        places = [[0, 2**62], [-8, 8], [8, 0], [0, 0], [0, 48], [1, 49], "x", None]
        field, values = draw.choice(
            [
                ("shape", shapes),
                ("data_offsets", places),
                ("dtype", ["F64", "F16", "I32", "BF16", "BOOL", "F8_E4M3", "X"]),
            ]
        )
        entry[field] = draw.choice(values)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def climbing(folder: Path, draw: random.Random) -> None:
    """Names that would lead out of the folder."""
    up = draw.choice(["../", "../../../", "/tmp/", "..", "a/../../", "..\\", "\x00", "//"])
    path = tensor_file(folder)
    if path.name == PICKLE or draw.random() < 0.3:
        fields = json.loads((folder / CONFIG).read_text())
        key = draw.choice(["target_modules", "modules_to_save", "base_model_name_or_path", "rank_pattern", "revision"])
        fields[key] = {f"{up}x": 2} if key == "rank_pattern" else draw.choice([up, [up, f"{up}up"]])
        (folder / CONFIG).write_text(json.dumps(fields))
        return
    tensors = safetensors.torch.load_file(path)
    key = draw.choice([*tensors])
    renamed = draw.choice(
        [up + key, f"base_model.model.{up}.{key.rpartition('.')[2]}", key.replace("block", f"{up}block")]
    )
    tensors[renamed] = tensors.pop(key) if draw.random() < 0.5 else tensors[key].clone()
    safetensors.torch.save_file(tensors, path)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut short": cut,
    "bits flipped": flip,
    "bytes put in or out": move,
    "settings of wrong types": wrong_types,
    "JSON nested or endless": deep,
    "header of the tensor file": header,
    "names with ..": climbing,
}
SHARES = [20, 35, 10, 20, 2, 8, 5]


# What must hold


class Hang(BaseException):
    """Loading took too long; no handler for exceptions catches it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def raw(folder: Path) -> dict[str, Tensor]:
    """The tensors by another reader."""
    path = tensor_file(folder)
    return (
        torch.load(path, map_location="cpu", weights_only=True)
        if path.name == PICKLE
        else safetensors.torch.load_file(path)
    )


def same(one: Tensor, other: Tensor) -> bool:
    other = other.reshape(one.shape).to(one.dtype)
    return torch.equal(one.nan_to_num(1.25), other.nan_to_num(1.25)) and torch.equal(one.isnan(), other.isnan())


def scale_by_the_file(fields: dict[str, Any], path: str, r: int) -> float:
    alphas = fields.get("alpha_pattern") or {}
    alpha = next((a for key, a in alphas.items() if re.match(rf"(.*\.)?({key})$", path)), fields.get("lora_alpha", 8))
    return alpha / (math.sqrt(r) if fields.get("use_rslora") else r)


def misread(model: nn.Module, folder: Path) -> str:
    """Compare what was attached with what the file says; empty where it is the same."""
    tensors, fields = raw(folder), json.loads((folder / CONFIG).read_text())
    for path, (A, B) in adapter_tensors(model).items():
        end = "lora_embedding_{}" if path == "tokens" else "lora_{}.weight"
        for letter, own in (("A", A), ("B", B)):
            if not same(own.detach(), tensors[f"base_model.model.{path}.{end.format(letter)}"]):
                return f"{letter} of {path} is not the file's"
        lora = lora_of(model.get_submodule(path))
        if lora is None or not math.isclose(lora.scale["default"], scale_by_the_file(fields, path, A.shape[0])):
            return f"the scale of {path} is not the file's"
        for name, own in lora.parameters_of("default").items():
            if name not in ("A", "B") and not same(
                own.detach(), tensors[f"base_model.model.{path}.lora_magnitude_vector"]
            ):
                return f"the magnitudes of {path} are not the file's"
    for path, own in replacement_tensors(model, "default").items():
        owner, _, leaf = path.rpartition(".")
        keys = [f"base_model.model.{path}", f"base_model.model.{owner}.base_layer.{leaf}"]
        if not any(key in tensors and same(own.detach(), tensors[key]) for key in keys):
            return f"{path} is not the file's"
    return ""


def unchanged(folder: Path, source: Path) -> bool:
    """Whether a damaged file still says the same: white space between the settings, or in the padding of a header."""
    one, other = raw(folder), raw(source)
    return (
        json.loads((folder / CONFIG).read_text()) == json.loads((source / CONFIG).read_text())
        and one.keys() == other.keys()
        and all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)
    )


def listing(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


@dataclass(frozen=True)
class Result:
    """What became of a file, strictly and leniently loaded: "refused", "loaded" or a fault in words."""

    whose: str
    damage: str
    strict: str
    lenient: str


def outcome(folder: Path, source: Path, whose: str, root: Path, strict: bool) -> str:
    """Load one file, and return "refused", "loaded", or what went wrong."""
    model, before = base(), listing(root)
    try:
        with limited():
            report = load_adapter(model, folder, strict=strict, allow_pickle=True)
    except RankwiseError as error:
        text = "refused" if "\n" not in str(error).strip() else f"an error of several lines: {error}"
        text = text if list(model.state_dict()) == list(base().state_dict()) else "refused, and the model was changed"
        return text if listing(root) == before else "refused, and something was written"
    except Hang:
        return f"took more than {LIMIT_S:g} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    if listing(root) != before:
        return "loading wrote something"
    if wrong := misread(model, folder):
        return wrong
    if whose == "Rankwise" and not report.findings and not unchanged(folder, source):
        return "a damaged file of our own passed"
    with contextlib.suppress(RankwiseError):  # what a lone surrogate names can't be written again
        save_adapter(model, root / "saved")
    after = {path for path in listing(root) if not path.startswith("saved")}
    shutil.rmtree(root / "saved", ignore_errors=True)
    return "loaded" if after == before.keys() else "saving wrote outside its folder"


def damaged(n_files: int, seed: int) -> Iterator[Result]:
    """Damage and load so many files, the same for one seed."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = write_sources(Path(scratch, "sources"))
        root = Path(scratch, "root")
        for number in range(n_files):
            draw = random.Random(f"{seed} {number}")
            (whose, source), damage = draw.choice(sources), draw.choices([*DAMAGES], SHARES)[0]
            folder = root / "inside" / "adapter"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(source, folder)
            DAMAGES[damage](folder, draw)
            yield Result(whose, damage, *(outcome(folder, source, whose, root, strict) for strict in (True, False)))


def table(results: list[Result]) -> list[str]:
    lines = [
        "| whose | damage | files | strict: refused | loaded | lenient: refused | loaded | faults |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for whose, damage in sorted({(result.whose, result.damage) for result in results}):
        own = [result for result in results if (result.whose, result.damage) == (whose, damage)]
        counts = [Counter(outcomes) for outcomes in ([r.strict for r in own], [r.lenient for r in own])]
        cells = [count[word] for count in counts for word in ("refused", "loaded")]
        lines.append(
            f"| {whose} | {damage} | {len(own)} | {' | '.join(map(str, cells))} | {2 * len(own) - sum(cells)} |"
        )
    return lines


def faults(results: list[Result]) -> list[str]:
    """The faults, each once, with how many files show it."""
    found = Counter(
        f"{result.whose}, {result.damage}: {text}"
        for result in results
        for text in (result.strict, result.lenient)
        if text not in ("refused", "loaded")
    )
    return [f"{count} x {text}" for text, count in found.most_common()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="append the table to RESULTS.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    beginning = time.perf_counter()
    results = list(damaged(arguments.files, arguments.seed))
    found = faults(results)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "peft", "safetensors"))
    text = "\n".join(
        [
            f"\n## {datetime.now(UTC):%Y-%m-%d} damaged_files.py --files {arguments.files} --seed {arguments.seed}",
            "",
            f"{versions}, Python {platform.python_version()}; {len(results):,} files in "
            f"{time.perf_counter() - beginning:.0f} s; faults: {sum(int(line.split(' ')[0]) for line in found)}.",
            "",
            *table(results),
            "",
        ]
    )
    print(text)
    print("\n".join(found))
    if arguments.record:
        with Path(__file__).with_name("RESULTS.md").open("a", encoding="utf-8") as file:
            file.write(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
