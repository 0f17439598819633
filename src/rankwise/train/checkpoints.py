"""Checkpoints: the state of long work on disk, written atomically; the previous one stays until the next is complete.

A checkpoint is a manifest, `checkpoint-000007.json`, and the tensor files that it names with their SHA-256; what has
not changed since the last checkpoint is named again, not written again. The manifest comes last and carries a
checksum of its own. Every file is written under a temporary name, flushed and renamed. So a kill at any moment
leaves the last two manifests and all that they name as they were.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.adapter_files.tensor_file import file_parts
from rankwise.errors import CheckpointError, ConfigError, OutputError, option
from rankwise.writing import read_regular, write_durably

FORMAT = "rankwise-checkpoint-1"
CHECKPOINTS_KEPT = 2
"""Checkpoints that are kept: the last, and the one before in case that the last is damaged."""

SECONDS, SHARE = 20.0, 0.02
"""By default one is written after this many seconds, but never so often that writing takes more than this share."""

Tensors = Mapping[str, Tensor]
PlainData = dict[str, Any]


@dataclass(frozen=True)
class CheckpointInterval:
    """The interval of checkpoints: whichever comes first; by default it depends on the time that writing takes.

    Args:
        epochs: After this many epochs.
        seconds: After this many seconds, in the middle of an epoch too.

    Raises:
        ConfigError: A number is not positive.
    """

    epochs: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for what, value in (("epochs", self.epochs), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise ConfigError(f"{option(what, f'checkpoint-{what}')} is {value}; it must be a positive number.")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Args:
        parts: Tensors by part and name.
        plain: The rest.
    """

    parts: Mapping[str, Tensors]
    plain: PlainData


@dataclass
class _Manifest:
    number: int
    plain: PlainData
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """Part -> {"file", "sha256"}."""

    @property
    def name(self) -> str:
        return f"checkpoint-{self.number:06}.json"

    def text(self) -> bytes:
        content = {"number": self.number, "files": self.files, "plain": self.plain}
        document = {"format": FORMAT, "sha256": _sha256(_canonical(content)), "content": content}
        return json.dumps(document, allow_nan=False).encode()


class Checkpoints:
    """The checkpoints of one piece of work, in their own folder.

    Args:
        folder: Where they lie; made when the first is written.
        say: Told, in a line, when one could not be written or is damaged.
        every: How often one is due.
        clock: Seconds; only differences count.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        every: CheckpointInterval | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._say, self._clock = folder, say, clock
        self._every = every or CheckpointInterval()
        self._kept: list[_Manifest] = []
        self._number = 0
        self._written, self._took, self._epochs = clock(), 0.0, 0
        self.seconds = 0.0
        """Time that writing has taken so far."""

    def epoch_over(self) -> None:
        """Count an epoch."""
        self._epochs += 1

    def due(self) -> bool:
        """Whether it is time to write one; asked after every step."""
        every, passed = self._every, self._clock() - self._written
        if every.epochs is not None and self._epochs >= every.epochs:
            return True
        if every.seconds is not None:
            return passed >= every.seconds
        return every.epochs is None and passed >= max(SECONDS, self._took / SHARE)

    def write(self, parts: Mapping[str, Tensors | None], plain: PlainData) -> bool:
        """Write a checkpoint.

        A failure (a full disk) is reported and leaves the earlier ones as they were; work can continue.

        Args:
            parts: Tensors by part; None for a part that is as it was in the last checkpoint.
            plain: What JSON can hold, without NaN.

        Returns:
            Whether it was written.
        """
        start = self._clock()
        manifest = _Manifest(self._number + 1, plain)
        try:
            for part, tensors in parts.items():
                manifest.files[part] = self._kept[-1].files[part] if tensors is None else self._put(part, tensors)
            write_durably(self._folder / manifest.name, manifest.text())
        except OutputError as error:
            cause = error.__cause__
            why = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
            kept = "; the last one is kept" if self._kept else ""
            self._say(f"A checkpoint could not be written to {self._folder} ({why}){kept}, and training continues.")
            written = False
        else:
            self._number = manifest.number
            self._kept = [*self._kept, manifest][-CHECKPOINTS_KEPT:]
            written = True
        self._tidy()
        self._written, self._epochs = self._clock(), 0
        self._took = self._written - start
        self.seconds += self._took
        return written

    def read(self) -> Checkpoint | None:
        """Read the last checkpoint that is whole, and write on from there.

        Returns:
            The checkpoint; None where there is none.

        Raises:
            CheckpointError: It was written by another version in another format.
        """
        found = sorted(self._folder.glob("checkpoint-*.json"), reverse=True)
        read: Checkpoint | None = None
        for path in found:
            try:
                manifest = _read_manifest(path)
                # The one before is kept as it is; whether it is whole matters when it is needed.
                read = read or Checkpoint(
                    {part: self._get(**file) for part, file in manifest.files.items()}, manifest.plain
                )
                self._kept.insert(0, manifest)
            except _DamagedError as error:
                if read is None:
                    self._say(f"{path} is damaged ({error}); the checkpoint before it is used.")
            if len(self._kept) == CHECKPOINTS_KEPT:
                break
        if found and read is None:
            self._say(f"No checkpoint in {self._folder} is whole; training starts from the beginning.")
        numbers = [int(match[0]) for path in self._folder.glob("*") if (match := re.search(r"\d{6,}", path.name))]
        self._number = max(numbers, default=0)
        self._written = self._clock()
        return read

    def _put(self, part: str, tensors: Tensors) -> dict[str, str]:
        parts, sha256 = file_parts({key: value.contiguous() for key, value in tensors.items()}, {}), hashlib.sha256()

        def hashed() -> Generator[Any]:
            for one in parts:
                sha256.update(one)
                yield one

        file = f"{self._number + 1:06}-{part}.safetensors"
        write_durably(self._folder / file, hashed())
        return {"file": file, "sha256": sha256.hexdigest()}

    def _get(self, file: str, sha256: str) -> Tensors:
        from safetensors.torch import load

        try:
            data = read_regular(self._folder / file)
        except OSError as error:
            raise _DamagedError(f"{file} can't be read: {error.strerror}") from error
        if _sha256(data) != sha256:
            raise _DamagedError(f"{file} does not fit its checksum")
        return load(data)

    def _tidy(self) -> None:
        """Remove what no kept checkpoint names: older ones, damaged ones, and what a kill or a full disk left."""
        named = {file["file"] for manifest in self._kept for file in manifest.files.values()}
        named |= {manifest.name for manifest in self._kept}
        for path in self._folder.glob("*"):
            ours = re.fullmatch(r"\.?(checkpoint-\d+\.json|\d{6,}-.*\.safetensors)(\.\d+\.tmp)?", path.name)
            if ours and path.name not in named:
                with suppress(OSError):
                    path.unlink()


class _DamagedError(Exception):
    """A file of a checkpoint is not what was written."""


def _read_manifest(path: Path) -> _Manifest:
    try:
        document = json.loads(read_regular(path))
        format_, sha256, content = document["format"], document["sha256"], document["content"]
        if format_ != FORMAT:
            raise CheckpointError(f'{path} has the format "{format_}"; this version of rankwise reads "{FORMAT}".')
        if _sha256(_canonical(content)) != sha256:
            raise _DamagedError("it does not fit its own checksum")
        return _Manifest(content["number"], content["plain"], content["files"])
    except OSError as error:
        raise _DamagedError(error.strerror) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _DamagedError("it is no manifest") from error


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
