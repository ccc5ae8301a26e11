"""The disk under a folder: O_DIRECT reads and writes by block size and depth, page faults of memory-mapped files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.host.library import HostLibrary
from stowplan_calibrate.measuring import Point, Surroundings
from stowplan_calibrate.sampling import Taken

_FILE_BYTES, _QUICK_FILE_BYTES = 2**29, 2**27
_SPARE = 2**28
_CHUNK = bytes(range(256)) * 4096
_BLOCKS = (2**12, 2**14, 2**16, 2**18, 2**20, 2**22)
_QUICK_BLOCKS = (2**12, 2**16, 2**20)
_DEPTHS, _QUICK_DEPTHS = (1, 4, 16), (1, 8)
_MOST_REQUESTS, _MOST_POINT_BYTES = 512, 2**27
_OURS = ".stowplan-calibrate"


@contextmanager
def reads(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Reads past the page cache."""
    library = around.needs_library()
    with test_file(around) as path:
        _refuse_without_direct(library, path, write=False)
        yield _requests(around, library, path, write=False)


@contextmanager
def writes(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Writes past the page cache, until the data are on the disk."""
    library = around.needs_library()
    with test_file(around) as path:
        _refuse_without_direct(library, path, write=True)
        yield _requests(around, library, path, write=True)


@contextmanager
def mapped(around: Surroundings) -> Iterator[Sequence[Point]]:
    """A memory-mapped file, read front to back: from the disk (cold) and from the page cache (warm)."""
    library = around.needs_library()
    with test_file(around) as path:
        size = path.stat().st_size & ~4095

        def run(threads: int, cold: bool) -> Taken:
            if cold and library.functions.stow_forget(os.fsencode(path)) != 0:
                raise CannotMeasure(f"{path.parent}: the page cache cannot be dropped there")
            taken = library.seconds("stow_mapped_read", os.fsencode(path), threads, int(cold), 1)
            return Taken(taken.seconds) if cold else taken  # who waits for a disk is not disturbed

        yield [
            Point(
                {"threads": threads, "cache": "cold" if cold else "warm"},
                {"bytes": float(size), "operations": size / 4096},
                partial(run, threads, cold),
            )
            for cold in (True, False)
            for threads in dict.fromkeys((1, around.cores))
        ]


def _requests(around: Surroundings, library: HostLibrary, path: Path, *, write: bool) -> list[Point]:
    size = path.stat().st_size
    points = []
    for block in _QUICK_BLOCKS if around.quick else _BLOCKS:
        for depth in _QUICK_DEPTHS if around.quick else _DEPTHS:
            each = max(1, min(_MOST_REQUESTS, _MOST_POINT_BYTES // block, size // block) // depth)
            scattered = block < 2**18
            points.append(
                Point(
                    {"block": block, "depth": depth, "access": "random" if scattered else "sequential"},
                    {"bytes": float(block * each * depth), "operations": float(each * depth)},
                    partial(_run, library, path, size, block, each, depth, write, scattered),
                )
            )
    return points


def _run(
    library: HostLibrary, path: Path, size: int, block: int, each: int, depth: int, write: bool, scattered: bool
) -> Taken:
    arguments = (os.fsencode(path), size, block, each, depth, int(write), 1, int(scattered))
    taken = library.raw("stow_disk", *arguments)
    if taken <= 0.0:
        raise CannotMeasure(f"{path.parent}: {'writing' if write else 'reading'} failed ({_told(-taken)})")
    return Taken(taken)


def _refuse_without_direct(library: HostLibrary, path: Path, *, write: bool) -> None:
    refuse_without_direct(path, library.raw("stow_disk", os.fsencode(path), 2**16, 2**12, 1, 1, int(write), 1, 0))


def refuse_without_direct(path: Path, taken: float) -> None:
    """What one request past the page cache answered, as a sentence where it failed.

    Raises:
        CannotMeasure: `taken` is an error number below zero: the file system refuses O_DIRECT, or the request failed.
    """
    if taken > 0.0:
        return
    problem = int(-taken)
    refused = problem in {errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}
    reason = f"O_DIRECT is refused ({_told(problem)})" if refused else f"it fails ({_told(problem)})"
    raise CannotMeasure(f"{path.parent}: {reason}; name a folder on a real disk with --folder")


def _told(problem: float) -> str:
    return os.strerror(int(problem)) if problem >= 1 else "no threads"


@contextmanager
def test_file(around: Surroundings) -> Iterator[Path]:
    """A file of test data, removed at the end.

    Raises:
        CannotMeasure: no room or no permission.
    """
    wanted = _QUICK_FILE_BYTES if around.quick else _FILE_BYTES
    path = around.folder / f"{_OURS}-{os.getpid()}.bin"
    try:
        free = shutil.disk_usage(around.folder).free
        if free < wanted + _SPARE:
            raise CannotMeasure(
                f"{around.folder}: {free / 2**20:.0f} MiB are free; the disk is measured with a file of "
                f"{wanted / 2**20:.0f} MiB and leaves {_SPARE / 2**20:.0f} MiB free"
            )
        try:
            with path.open("wb") as file:
                for _ in range(wanted // len(_CHUNK)):
                    file.write(_CHUNK)
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotMeasure(f"{around.folder}: no test file can be written ({error.strerror or error})") from error
