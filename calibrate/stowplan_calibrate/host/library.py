"""The host library: C kernels compiled on this computer, or numpy where there is no compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stowplan_calibrate.building import CannotMeasure, build, compiler_version, find_compiler
from stowplan_calibrate.sampling import Taken

_FOLDER = Path(__file__).resolve().parent
_SOURCES = ("team.c", "memory.c", "compute.c", "disk.c")
_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC", "-pthread")
_DOUBLE, _SIZE, _INT, _WIDE, _ADDRESS, _PATH = (
    ctypes.c_double,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.c_char_p,
)
_ARGUMENTS: dict[str, list[Any]] = {
    "stow_read": [_ADDRESS, _SIZE, _INT],
    "stow_copy": [_ADDRESS, _ADDRESS, _SIZE, _INT],
    "stow_triad": [_ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _INT],
    "stow_anonymous_faults": [_SIZE, _INT],
    "stow_mapped_read": [_PATH, _INT, _INT, _INT],
    "stow_chain": [_WIDE, _INT],
    "stow_fma": [_WIDE, _INT],
    "stow_gemv": [_INT, _ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _SIZE, _INT],
    "stow_gemm": [_ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _SIZE, _SIZE, _INT],
    "stow_attention": [_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _INT, _INT, _INT, _INT],
    "stow_disk": [_PATH, _SIZE, _SIZE, _SIZE, _INT, _INT, _INT, _INT],
}


@dataclass(frozen=True, slots=True)
class HostLibrary:
    """The compiled kernels.

    Attributes:
        compiler: what built it, in the compiler's own words.
        functions: the loaded library; its calls return seconds and let other Python threads run.
    """

    compiler: str
    functions: ctypes.CDLL

    def seconds(self, name: str, *arguments: object) -> Taken:
        """Seconds that one call took, and the share of them in which its threads were on cores.

        Raises:
            CannotMeasure: the call failed: memory, threads or a file could not be had.
        """
        taken = float(getattr(self.functions, name)(*arguments))
        if taken < 0.0:
            raise CannotMeasure(f"{name.removeprefix('stow_')} failed on this computer (code {-taken:.0f})")
        return Taken(taken, float(self.functions.stow_running()))

    def raw(self, name: str, *arguments: object) -> float:
        """What one call returned, an error number below zero included."""
        return float(getattr(self.functions, name)(*arguments))

    @property
    def vector_width(self) -> int:
        """Floats in one vector register, as the library was compiled."""
        return int(self.functions.stow_vector_width())


def load_host_library(compilers: Sequence[str] = ("cc", "gcc", "clang")) -> HostLibrary:
    """The library, built at its first use on this computer.

    Raises:
        CannotMeasure: no C compiler, or one that refuses.
    """
    compiler = find_compiler(compilers, "C compiler")
    sources = [_FOLDER / name for name in _SOURCES]
    try:
        path = build(compiler, [*_FLAGS, "-march=native"], sources, "stowhost.so", ["-lm"])
    except CannotMeasure:  # some compilers have no such flag on Arm
        path = build(compiler, [*_FLAGS, "-mcpu=native"], sources, "stowhost.so", ["-lm"])
    functions = ctypes.CDLL(str(path))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(functions, name)
        function.argtypes, function.restype = arguments, _DOUBLE
    functions.stow_vector_width.restype = _INT
    functions.stow_running.restype = _DOUBLE
    functions.stow_forget.argtypes = [_PATH]
    return HostLibrary(compiler_version(compiler), functions)
