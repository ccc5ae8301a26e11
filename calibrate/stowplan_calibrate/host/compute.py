"""Host cores: their real clock, vector peak, products with quantised weights, matrix products, attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from stowplan_calibrate.host.library import HostLibrary
from stowplan_calibrate.measuring import Point, Surroundings
from stowplan_calibrate.results import Parameter
from stowplan_calibrate.sampling import Taken, timed

CHAIN_ADDS, FMA_CHAINS = 16, 12
GEMV_FORMATS = {"f32": 0, "bf16": 1, "q8_0": 2, "q4_0": 3}
BLOCK_BYTES = {"f32": 128, "bf16": 64, "q8_0": 34, "q4_0": 18}
_GEMV_SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336))
_GEMM_SHAPES = ((96, 2048, 2048), (96, 5632, 2048), (510, 2048, 2048))
_ATTENTION = ((32, 8, 128, 1024), (32, 8, 128, 8192), (32, 32, 64, 4096))


@contextmanager
def clocks(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Dependent additions: their number per second is the clock, whatever the system reports."""
    library, rounds = around.needs_library(), 4_000_000
    yield [
        Point(
            {"threads": threads},
            {"operations": float(rounds * CHAIN_ADDS)},
            partial(library.seconds, "stow_chain", rounds, threads),
        )
        for threads in around.thread_counts
    ]


@contextmanager
def peaks(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Independent fused multiply-adds in registers: the fp32 peak of the vector units."""
    library, rounds = around.needs_library(), 2_000_000
    yield [
        Point(
            {"threads": threads},
            {"flops": 2.0 * rounds * FMA_CHAINS * library.vector_width * threads},
            partial(library.seconds, "stow_fma", rounds, threads),
        )
        for threads in around.thread_counts
    ]


@contextmanager
def gemv(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Matrix times vector with the weights of real layers in four formats."""
    if around.library is None:
        rows, columns = _GEMV_SHAPES[0]
        matrix, vector = np.ones((rows, columns), np.float32), np.ones(columns, np.float32)
        amounts = {"bytes": float(matrix.nbytes), "flops": 2.0 * matrix.size}
        parameters: dict[str, Parameter] = {"format": "f32", "rows": rows, "columns": columns, "kernel": "numpy"}
        yield [Point(parameters, amounts, timed(lambda: matrix @ vector))]
        return
    library = around.library
    rng = np.random.default_rng(0)
    shapes = _GEMV_SHAPES[:1] if around.quick else _GEMV_SHAPES
    largest = max(rows * columns for rows, columns in shapes)
    weights = rng.integers(1, 120, 4 * largest, dtype=np.uint8)
    weights[1::2] = 60  # the upper byte of a half-width float: no value is huge, none is subnormal
    x = rng.standard_normal(max(columns for _, columns in shapes)).astype(np.float32)
    y = np.empty(max(rows for rows, _ in shapes), np.float32)
    yield [
        Point(
            {"format": name, "rows": rows, "columns": columns, "threads": threads},
            {"bytes": rows * columns / 32 * BLOCK_BYTES[name], "flops": 2.0 * rows * columns},
            partial(
                library.seconds,
                "stow_gemv",
                number,
                weights.ctypes.data,
                x.ctypes.data,
                y.ctypes.data,
                rows,
                columns,
                threads,
            ),
        )
        for name, number in GEMV_FORMATS.items()
        for rows, columns in shapes
        for threads in (around.thread_counts if (rows, columns) == shapes[0] else [around.cores])
    ]


@contextmanager
def gemm(around: Surroundings) -> Iterator[Sequence[Point]]:
    """Matrix products in fp32 with real layer shapes: our kernel and numpy's library."""
    points: list[Point] = []
    for m, n, k in _GEMM_SHAPES[: 1 if around.quick else None]:
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        c = np.empty((m, n), np.float32)
        amounts = {"flops": 2.0 * m * n * k, "bytes": float(a.nbytes + b.nbytes + c.nbytes)}
        shape = {"m": m, "n": n, "k": k}
        if around.library is not None:
            addresses = (a.ctypes.data, b.ctypes.data, c.ctypes.data)
            run = partial(_owning, (a, b, c), around.library, "stow_gemm", *addresses, m, n, k, around.cores)
            points.append(Point({**shape, "kernel": "c", "threads": around.cores}, amounts, run))
        points.append(Point({**shape, "kernel": "numpy"}, amounts, timed(partial(np.matmul, a, b, out=c))))
    yield points


@contextmanager
def attention(around: Surroundings) -> Iterator[Sequence[Point]]:
    """One query per head against a long cache in 16 bits: memory and arithmetic of decode attention."""
    library = around.needs_library()
    points: list[Point] = []
    for heads, kv_heads, width, context in _ATTENTION[: 1 if around.quick else None]:
        q, out = np.ones(heads * width, np.float32), np.empty(heads * width, np.float32)
        keys = np.full(kv_heads * context * width, 0x3C00, np.uint16)
        values = keys.copy()
        addresses = (q.ctypes.data, keys.ctypes.data, values.ctypes.data, out.ctypes.data)
        shape = (heads, kv_heads, width, context)
        run = partial(_owning, (q, keys, values, out), library, "stow_attention", *addresses, *shape, around.cores)
        parameters = dict(zip(("heads", "kv_heads", "width", "context"), shape, strict=True))
        amounts = {"bytes": 2.0 * keys.nbytes, "flops": 4.0 * heads * width * context}
        points.append(Point({**parameters, "threads": around.cores}, amounts, run))
    yield points


def _owning(_arrays: tuple[object, ...], library: HostLibrary, name: str, *arguments: object) -> Taken:
    """One call of the library that keeps the arrays alive whose addresses it is given."""
    return library.seconds(name, *arguments)
