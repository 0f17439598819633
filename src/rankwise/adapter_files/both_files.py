"""The two files of an adapter's folder, written together."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.adapter_files.base.checksums import PLAIN, metadata_of
from rankwise.adapter_files.peft.config import CONFIG_FILE
from rankwise.adapter_files.tensor_file import TENSOR_FILE, write_tensors
from rankwise.errors import OutputError
from rankwise.writing import flush


def write_files(
    directory: str | os.PathLike[str],
    fields: Mapping[str, Any],
    flat: Mapping[str, Tensor],
    records: Mapping[str, str] | None,
) -> Path:
    """Write the two files of an adapter.

    Args:
        directory: The folder; made if need be.
        fields: The settings, in PEFT's words.
        flat: Key -> contiguous tensor on the CPU, none of which share memory.
        records: What the metadata say of the base; None for a file without checksums, which is read as PEFT's.

    Returns:
        The folder.

    Raises:
        OutputError: They can't be written.
    """
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    folder = Path(directory)
    try:
        _replace_files(folder, text, flat, PLAIN if records is None else metadata_of(flat, text, records))
    except OSError as error:
        raise OutputError(f"The adapter can't be written to {folder}: {error.strerror or error}.") from error
    return folder


def _replace_files(folder: Path, text: str, flat: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write both files under temporary names, then move them in.

    The old configuration goes first and the new one comes last: without it there is no adapter, so an
    interruption between the moves leaves none, and one before them leaves the old one.
    """
    made = not folder.exists()
    done = False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
            write_tensors(Path(scratch, TENSOR_FILE), dict(flat), metadata)
            Path(scratch, CONFIG_FILE).write_text(text, encoding="utf-8")
            for name in (TENSOR_FILE, CONFIG_FILE):
                flush(Path(scratch, name))
            (folder / CONFIG_FILE).unlink(missing_ok=True)
            for name in (TENSOR_FILE, CONFIG_FILE):
                os.replace(Path(scratch, name), folder / name)
        flush(folder)
        done = True
    finally:
        if made and not done:
            with contextlib.suppress(OSError):
                folder.rmdir()
