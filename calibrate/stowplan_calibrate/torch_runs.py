"""PyTorch's kernels as entries of the suite: run by whichever Python has torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.cuda.programs import parse_lines
from stowplan_calibrate.gpu_sensors import GpuSensors
from stowplan_calibrate.measuring import Batch, Surroundings
from stowplan_calibrate.results import Taking, identity

_SCRIPT = Path(__file__).resolve().parent / "torch_bench.py"
_LONGEST_S = 600.0
_POINTS = {"cuda": 90, "cpu": 34}
_QUICK_POINTS = {"cuda": 20, "cpu": 14}


def torch_suite(around: Surroundings, python: str | None) -> list[Batch]:
    """Entries for every device, where this Python has torch or another one is named."""
    if python is None and find_spec("torch") is None:
        return []
    program = python or sys.executable
    entries = [Batch("torch.cpu", "cpu", "PyTorch on the CPU", 6, partial(take, program, "cpu", 0))]
    return entries + [
        Batch(f"torch.gpu.{index}", "gpu", f"PyTorch on GPU {index}", 12, partial(take, program, "cuda", index))
        for index in range(around.gpus)
    ]


def take(
    python: str, device: str, index: int, around: Surroundings, budget_s: float, have: Collection[str]
) -> Iterator[Taking]:
    """Points of one device that are not in `have`.

    Raises:
        CannotMeasure: no torch, no device, or the program fails.
    """
    sensors = GpuSensors(index) if device == "cuda" else dict[str, float]
    points = (_QUICK_POINTS if around.quick else _POINTS)[device]
    command = [python, str(_SCRIPT), "--device", device, "--gpu", str(index), "--budget", f"{budget_s / points:.3f}"]
    command += ["--quick"] if around.quick else []
    command += ["--threads", str(around.cores)] if device == "cpu" else []
    before = sensors()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotMeasure(f"PyTorch's kernels took more than {_LONGEST_S:.0f} s") from error
    except OSError as error:
        raise CannotMeasure(f"{python} cannot be started ({error.strerror or error})") from error
    after = sensors()
    pairs = {name: (before[name], after[name]) for name in sorted(before.keys() & after.keys())}
    for point in parse_lines(done.stdout, "torch_bench"):
        if identity(point.name, point.parameters) not in have:
            yield Taking(point.name, point.parameters, point.amounts, point.samples.with_sensors(pairs), point.tool)
    if done.returncode != 0:
        told = " ".join(done.stderr.split())[-300:]
        raise CannotMeasure(f"torch_bench ended with status {done.returncode}{f': {told}' if told else ''}")
