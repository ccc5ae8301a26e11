"""Host memory: reading, copying and triads by threads, and page faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stowplan_calibrate.measuring import Point, Surroundings
from stowplan_calibrate.sampling import Taken, timed

Floats = NDArray[np.float32]
_MOST_BYTES = 2**30
_LEAST_BYTES = 2**22


def stream_bytes(around: Surroundings, arrays: int) -> int:
    """Bytes of one array: far beyond any cache, and `arrays` of them within a quarter of the memory.

    Large server caches reach 1 GiB; an array of 256 MiB for every core's share keeps them out of the figures.
    """
    wanted = min(_MOST_BYTES, 2**28 if around.quick else 2**29)
    return max(_LEAST_BYTES, int(min(wanted, around.memory / (4 * arrays)))) & ~4095


@contextmanager
def reads(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Summing one array: every byte is read once."""
    (a,) = _arrays(around, 1)
    amounts = {"bytes": float(a.nbytes)}
    if around.library is None:
        yield [Point({"threads": 1, "kernel": "numpy"}, amounts, timed(lambda: float(a.sum())))]
        return
    library = around.library
    yield [
        Point(
            {"threads": threads, "bytes": a.nbytes},
            amounts,
            partial(library.seconds, "stow_read", a.ctypes.data, a.size, threads),
        )
        for threads in around.thread_counts
    ]


@contextmanager
def copies(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Copying one array to another: bytes read and bytes written both count."""
    a, b = _arrays(around, 2)
    amounts = {"bytes": 2.0 * a.nbytes}
    if around.library is None:
        yield [Point({"threads": 1, "kernel": "numpy"}, amounts, timed(lambda: np.copyto(a, b)))]
        return
    library = around.library

    def run(threads: int) -> Taken:
        return library.seconds("stow_copy", a.ctypes.data, b.ctypes.data, a.size, threads)

    yield _by_threads(around, a, amounts, run)


@contextmanager
def triads(around: Surroundings) -> Iterator[Sequence[Point]]:
    """a = b + 3 c: two arrays read, one written (what the caches fetch before writing is not counted)."""
    a, b, c = _arrays(around, 3)
    amounts = {"bytes": 3.0 * a.nbytes}
    if around.library is None:
        yield [Point({"threads": 1, "kernel": "numpy"}, amounts, timed(lambda: np.add(b, c, out=a)))]
        return
    library = around.library

    def run(threads: int) -> Taken:
        return library.seconds("stow_triad", a.ctypes.data, b.ctypes.data, c.ctypes.data, a.size, threads)

    yield _by_threads(around, a, amounts, run)


@contextmanager
def anonymous_faults(around: Surroundings) -> Iterator[Sequence[Point]]:
    """First touches of fresh memory: what allocating a buffer costs."""
    library = around.needs_library()
    size = 2**26 if around.quick else 2**27
    yield [
        Point(
            {"threads": threads, "bytes": size},
            {"bytes": float(size), "operations": size / 4096},
            partial(library.seconds, "stow_anonymous_faults", size, threads),
        )
        for threads in (1, around.cores)
    ][: 2 if around.cores > 1 else 1]


def _by_threads(around: Surroundings, a: Floats, amounts: dict[str, float], run: Callable[[int], Taken]) -> list[Point]:
    return [
        Point({"threads": threads, "bytes": a.nbytes}, amounts, partial(run, threads))
        for threads in around.thread_counts
    ]


def _arrays(around: Surroundings, count: int) -> list[Floats]:
    floats = stream_bytes(around, count) // 4
    return [np.full(floats, 1.0 + i, dtype=np.float32) for i in range(count)]
