"""The CUDA programs: built by nvcc on this computer, run one after another, their lines read back as samples."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stowplan_calibrate.building import CannotMeasure, build, compiler_version, find_compiler
from stowplan_calibrate.results import Parameter
from stowplan_calibrate.sampling import Sampled

_FOLDER = Path(__file__).resolve().parent
_FLAGS = ("-O3", "-std=c++17", "-arch=native")
_CUFILE = ("-DSTOW_WITH_CUFILE",)
_LONGEST_S = 300.0
_MOST_OUTPUT = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Program:
    """One CUDA program.

    Attributes:
        stem: its source without ``.cu``; group: gpu or pcie; title: for the progress line.
        weight: share of the run's time; points: about how many it takes, to share the time among them.
        libraries: linked besides; reads_file: whether it needs a test file.
    """

    stem: str
    group: str
    title: str
    weight: float
    points: int
    libraries: tuple[str, ...] = ()
    reads_file: bool = False


PROGRAMS = (
    Program("memory", "gpu", "GPU memory", 3, 12),
    Program("launch", "gpu", "kernel launches", 1, 3),
    Program("gemv", "gpu", "products with one row on the GPU", 3, 12),
    Program("copies", "pcie", "copies between host and GPU", 5, 41),
    Program("zero_copy", "pcie", "GPU reads of host memory", 1, 5),
    Program("direct_storage", "pcie", "reads from disk to GPU", 2, 6, reads_file=True),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One point that a program measured; `tool` is what the program says of itself, empty where it says nothing."""

    name: str
    parameters: Mapping[str, Parameter]
    amounts: Mapping[str, float]
    samples: Sampled
    tool: str = ""


def build_program(program: Program) -> tuple[Path, str]:
    """Path of the built program, and the compiler in its own words.

    Raises:
        CannotMeasure: no nvcc, or it refuses.
    """
    compiler = find_compiler(("nvcc", "/usr/local/cuda/bin/nvcc"), "CUDA compiler")
    source = _FOLDER / f"{program.stem}.cu"
    version = compiler_version(compiler)
    if program.reads_file:
        try:
            return build(compiler, [*_FLAGS, *_CUFILE], [source], program.stem, ["-lcufile"]), version
        except CannotMeasure:  # without cuFile's library the program says that it cannot measure
            return build(compiler, _FLAGS, [source], program.stem), version
    return build(compiler, _FLAGS, [source], program.stem, program.libraries), version


def run_program(path: Path, gpu: int, point_s: float, *, file: Path | None = None) -> Iterator[Measured]:
    """Points of one run of a program, as it prints them.

    Args:
        path: the built program; gpu: device number; point_s: seconds for each point.
        file: a large file, for a program that reads one.

    Raises:
        CannotMeasure: the device is absent or refuses, or the program fails, hangs or prints what cannot be read.
    """
    command = [str(path), "--gpu", str(gpu), "--budget", f"{point_s:.3f}"]
    command += ["--path", str(file)] if file is not None else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(f"{path.name} did not end within {_LONGEST_S:.0f} s; is the GPU busy?") from error
    except OSError as error:
        raise CannotMeasure(f"{path.name} cannot be started ({error.strerror or error})") from error
    yield from parse_lines(done.stdout, path.name)
    if done.returncode != 0:
        told = " ".join(done.stderr.split())[:300]
        raise CannotMeasure(f"{path.name} ended with status {done.returncode}{f': {told}' if told else ''}")


def parse_lines(output: str, program: str) -> Iterator[Measured]:
    """Points of a program's output.

    Raises:
        CannotMeasure: the program says that it cannot measure, or a line is not one of its own.
    """
    if len(output) > _MOST_OUTPUT:
        raise CannotMeasure(f"{program} printed more than {_MOST_OUTPUT // 2**20} MiB")
    for line in output.splitlines():
        try:
            row = json.loads(line)
            reason = row.get("error") or row.get("skip")
        except (ValueError, AttributeError, RecursionError) as error:
            raise CannotMeasure(f"{program} printed a line that is no JSON object: {line[:80]}") from error
        if reason:
            raise CannotMeasure(f"{program}: {str(reason)[:300]}")
        yield _point(row, program)


def _point(row: Mapping[str, Any], program: str) -> Measured:
    try:
        seconds = tuple(float(value) for value in row["seconds"])
        amounts = {str(name): float(value) for name, value in row["amounts"].items()}
        parameters = {str(name): _parameter(value) for name, value in row["parameters"].items()}
        point = Measured(
            str(row["name"]), parameters, amounts, Sampled(seconds, stopped="budget"), str(row.get("tool", ""))
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CannotMeasure(f"{program} printed a point that cannot be read ({error})") from error
    if not seconds or not all(math.isfinite(value) and value > 0.0 for value in (*seconds, *amounts.values())):
        raise CannotMeasure(f"{program} printed a point of {point.name} whose numbers are not all positive")
    return point


def _parameter(value: Any) -> Parameter:
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} is no parameter")
