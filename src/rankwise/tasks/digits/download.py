"""Fetch a file once: several mirrors, resumed where it broke off, checked before it gets its name."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from rankwise.errors import DataError

DownloadProgress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes so far, bytes in all or None where the server does not tell)."""

CHUNK = 1 << 16
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""


class MirrorError(Exception):
    """One try at one mirror failed; the text is a short reason."""


def download(
    mirrors: Sequence[str], target: Path, check: Callable[[Path], None], progress: DownloadProgress | None = None
) -> Path:
    """Fetch `mirror + "/" + target.name` from the first mirror that has it; nothing happens if it is there.

    What has arrived stays in `<target>.part`, and a later call continues from there. The file takes its own
    name only after `check` has passed it, so a file under that name is whole.

    Args:
        mirrors: Base addresses (http or https), tried in turn.
        target: Where the file goes; its folder is made.
        check: Raises ValueError, with a short reason, where the file is not the right one.
        progress: Told of every chunk.

    Returns:
        `target`.

    Raises:
        DataError: The folder can't be written, or no mirror gave the right file; the message lists what each said.
    """
    if target.exists():
        return target
    part = target.with_name(target.name + ".part")
    reasons: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            url = f"{mirror.rstrip('/')}/{target.name}"
            try:
                _fetch_checked(url, part, check, progress)
            except MirrorError as error:
                reasons.append(f"{url}: {error}")
            else:
                os.replace(part, target)
                return target
    except OSError as error:
        raise DataError(f"{target} can't be written ({error.strerror or error}); give another folder.") from error
    raise DataError(f"{target.name} could not be fetched ({'; '.join(reasons)}).")


def _fetch_checked(url: str, part: Path, check: Callable[[Path], None], progress: DownloadProgress | None) -> None:
    """Fetch and check; a file that was resumed and turns out wrong is fetched once more from its start.

    Mirrors hold the same content but not always the same compressed bytes, so the two halves of a resumed
    file may not belong together.
    """
    resumed = part.exists()
    _fetch(url, part, progress)
    try:
        check(part)
    except ValueError as error:
        part.unlink()
        if not resumed:
            raise MirrorError(str(error)) from error
        _fetch_checked(url, part, check, progress)


def _fetch(url: str, part: Path, progress: DownloadProgress | None) -> None:
    """Append to `part` until it is complete; retry after a break while each try makes progress."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _fetch_rest(url, part, before, progress)
        except MirrorError:
            if not part.exists() or part.stat().st_size <= before:
                raise


def _fetch_rest(url: str, part: Path, have: int, progress: DownloadProgress | None) -> None:
    """One request for the bytes after the first `have`."""
    if not url.startswith(("http://", "https://")):
        raise MirrorError("an address must begin with http:// or https://")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            have, total = _expected_size(answer, have)
            with part.open("ab" if have else "wb") as file:
                while chunk := _read_chunk(answer):
                    have += file.write(chunk)
                    if progress is not None:
                        progress(part.name.removesuffix(".part"), have, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # Everything is here already; the check says whether it is right.
        raise MirrorError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise MirrorError(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise MirrorError(f"{type(error).__name__}: {error}") from error
    if total is not None and have < total:
        raise MirrorError(f"the connection broke off after {have:,} of {total:,} bytes")


def _expected_size(answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return the bytes that stay, and the whole size: a server may ignore the Range and send everything."""
    have = have if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
    length = answer.headers.get("Content-Length")
    return have, None if length is None else have + int(length)


def _read_chunk(answer: http.client.HTTPResponse) -> bytes:
    """Read what has arrived; a connection that breaks reads like an end, which size and check then tell apart."""
    try:
        return answer.read(CHUNK)
    except (http.client.HTTPException, OSError):
        return b""
