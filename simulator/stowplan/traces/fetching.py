"""Downloads of public traces: resumed where they broke off, verified, and never over a file that is there.

Nothing here runs unless the user asks for a download.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stowplan.errors import InputError
from stowplan.traces.catalogue import Download

_PIECE = 2**20
_TIMEOUT_S = 30.0
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes that there will be."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified file and how it came: bytes that were kept from before, and bytes that were loaded now."""

    path: Path
    kept: int
    loaded: int


class DownloadFailed(InputError):
    """The file could not be loaded or is not the published one; what was loaded is kept where it can be resumed."""


def fetch(source: Download, target: Path, *, replace: bool = False, progress: Progress | None = None) -> Fetched:
    """Load a file, or find that it is there already.

    The part that has arrived is kept beside the target with the ending ``.part``; the next call goes on from its end.
    The target appears in one step, after its SHA-256 has been found equal to the published one.

    Args:
        source: address, size and SHA-256.
        target: where the file goes; its folder is made.
        replace: load again although another file is there.
        progress: told how far it is.

    Raises:
        InputError: another file of that name is there, or the folder cannot be written.
        DownloadFailed: the server refuses, the connection breaks, or the content is not the published one.
    """
    if not source.url.lower().startswith(("http://", "https://")):
        raise InputError(f"{source.url}: is no http or https address")
    part = target.with_name(f"{target.name}.part")
    try:
        if target.exists() and not replace:
            return _already_there(source, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = part.stat().st_size if part.exists() else 0
        if kept > source.size:
            part.unlink()
            kept = 0
        kept, loaded = (kept, 0) if kept == source.size else _load(source, part, kept, progress)
        _verify(source, part)
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
    return Fetched(target, kept, loaded)


def _already_there(source: Download, target: Path) -> Fetched:
    if target.stat().st_size == source.size and sha256_of(target) == source.sha256:
        return Fetched(target, source.size, 0)
    raise InputError(
        f"{target}: is there already and is not the published file; move it, or load over it with --replace"
    )


def _load(source: Download, part: Path, kept: int, progress: Progress | None) -> tuple[int, int]:
    """Append the rest of the file to the part; bytes kept (none where the server cannot resume) and bytes loaded."""
    headers = {"User-Agent": "stowplan", "Accept-Encoding": "identity"}
    if kept:
        headers["Range"] = f"bytes={kept}-"
    loaded = 0
    try:
        request = urllib.request.Request(source.url, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if kept and not _resumes(answer, kept):
                kept = 0
            with part.open("ab" if kept else "wb") as file:
                while piece := answer.read(_PIECE):
                    loaded += len(piece)
                    if kept + loaded > source.size:
                        raise _unlike(source, part, f"it is longer than {source.size:,} bytes")
                    file.write(piece)
                    if progress is not None:
                        progress(kept + loaded, source.size)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _RANGE_NOT_SATISFIABLE:
            raise _unlike(source, part, f"it is shorter than the {kept:,} bytes that are here") from error
        raise DownloadFailed(f"{source.url}: the server answers {error.code} ({error.reason})") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        here = part.stat().st_size if part.exists() else 0
        raise DownloadFailed(
            f"{source.url}: the connection failed ({reason}); {here:,} of {source.size:,} bytes are here, "
            f"the same command goes on from there"
        ) from error
    if kept + loaded < source.size:
        raise DownloadFailed(
            f"{source.url}: the connection ended after {kept + loaded:,} of {source.size:,} bytes; "
            f"the same command goes on from there"
        )
    return kept, loaded


def _resumes(answer: http.client.HTTPResponse, kept: int) -> bool:
    """Whether the answer goes on where the part ends; a server that ignores ranges sends the whole file."""
    return answer.status == _PARTIAL_CONTENT and answer.headers.get("Content-Range", "").startswith(f"bytes {kept}-")


def _verify(source: Download, part: Path) -> None:
    found = sha256_of(part)
    if found != source.sha256:
        raise _unlike(source, part, f"its SHA-256 is {found} instead of {source.sha256}")


def _unlike(source: Download, part: Path, difference: str) -> DownloadFailed:
    """The error of content that is not the published one; the part is of no use and is deleted."""
    part.unlink(missing_ok=True)
    return DownloadFailed(f"{source.url}: is not the published file: {difference}; what was loaded is deleted")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
