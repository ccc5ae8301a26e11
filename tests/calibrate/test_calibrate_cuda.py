"""CUDA sources compile where nvcc is; what they print is read or named. Their kernels run on no machine here."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stowplan_calibrate.building import CannotMeasure
from stowplan_calibrate.cuda.programs import PROGRAMS, build_program, parse_lines, run_program
from stowplan_calibrate.cuda_bench import take
from stowplan_calibrate.gpu_sensors import GpuSensors
from stowplan_calibrate.measuring import Surroundings
from stowplan_calibrate.torch_runs import take as take_torch

RECORDED = """\
{"name":"gpu.read","parameters":{"gpu":0,"bytes":16777216},"amounts":{"bytes":16777216},"seconds":[1.9e-05,2e-05]}
{"name":"gpu.launch","parameters":{"gpu":0,"mode":"graph"},"amounts":{"operations":512},"seconds":[0.0006]}
"""


def program_that_prints(folder: Path, text: str, status: int = 0) -> Path:
    path = folder / "fake"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint({text!r}, end='')\nsys.exit({status})\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=[program.stem for program in PROGRAMS])
def test_sources_compile(program: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc is here")
    monkeypatch.setenv("STOWPLAN_CACHE", str(tmp_path))
    path, version = build_program(program)  # type: ignore[arg-type]
    assert path.stat().st_size > 10_000
    assert version
    done = subprocess.run([path, "--gpu", "0"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 3 or '"skip"' in done.stdout:
        with pytest.raises(CannotMeasure, match=path.name):
            list(run_program(path, 0, 0.01))
    else:
        assert list(parse_lines(done.stdout, path.name))


def test_recorded_lines_are_read(tmp_path: Path) -> None:
    read, launch = run_program(program_that_prints(tmp_path, RECORDED), 0, 0.1)
    assert (read.name, read.parameters, read.amounts) == (
        "gpu.read",
        {"gpu": 0, "bytes": 16777216},
        {"bytes": 16777216.0},
    )
    assert read.samples.seconds == (1.9e-05, 2e-05)
    assert launch.parameters["mode"] == "graph"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Segmentation fault", "no JSON object"),
        ("7", "no JSON object"),
        ('{"error":"cudaSetDevice: no CUDA-capable device is detected"}', "no CUDA-capable device"),
        ('{"skip":"cuFile is not installed here","name":"gpu.direct_read"}', "cuFile is not installed"),
        ('{"name":"x","parameters":{},"amounts":{}}', "cannot be read"),
        ('{"name":"x","parameters":{},"amounts":{},"seconds":[]}', "not all positive"),
        ('{"name":"x","parameters":{},"amounts":{"bytes":0},"seconds":[1]}', "not all positive"),
        ('{"name":"x","parameters":{"a":[]},"amounts":{},"seconds":[1]}', "cannot be read"),
    ],
)
def test_what_a_program_should_not_print_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CannotMeasure, match=words):
        list(run_program(program_that_prints(tmp_path, text + "\n"), 0, 0.1))


def test_points_before_a_crash_are_kept(tmp_path: Path) -> None:
    found = []
    with pytest.raises(CannotMeasure, match="status 9"):
        for point in run_program(program_that_prints(tmp_path, RECORDED, status=9), 0, 0.1):
            found.append(point)  # noqa: PERF402
    assert len(found) == 2


def test_no_nvcc_and_no_gpu_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(CannotMeasure, match="no CUDA compiler is here"):
        build_program(PROGRAMS[0])
    around = Surroundings(cores=2, memory=1e9, folder=tmp_path)
    with pytest.raises(CannotMeasure, match="no NVIDIA GPU is here"):
        list(take(PROGRAMS[0], 0, around, 1.0, ()))


class FakeNvml:
    """The driver's library with planted readings; a GPU that another program keeps busy where `load` says so."""

    def __init__(self, load: int = 0) -> None:
        self.load = load

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: object, device: object) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetClockInfo(self, device: object, kind: ctypes.c_uint, answer: object) -> int:  # noqa: N802
        answer._obj.value = {1: 1980, 2: 2619}[kind.value]  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetPowerUsage(self, device: object, answer: object) -> int:  # noqa: N802
        answer._obj.value = 412_000  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetTemperature(self, device: object, kind: object, answer: object) -> int:  # noqa: N802
        return 3  # refused

    def nvmlDeviceGetUtilizationRates(self, device: object, answer: object) -> int:  # noqa: N802
        answer._obj.gpu = self.load  # type: ignore[attr-defined]
        return 0


def test_sensors_tell_what_the_driver_tells() -> None:
    sensors = GpuSensors(0, lambda _: FakeNvml())  # type: ignore[arg-type, return-value]
    assert sensors() == pytest.approx({"sm clock": 1.98e9, "memory clock": 2.619e9, "power": 412.0})
    assert sensors.busy() is None
    assert "87 % busy" in str(GpuSensors(0, lambda _: FakeNvml(87)).busy())  # type: ignore[arg-type, return-value]


def test_without_a_driver_nothing_is_told() -> None:
    def absent(_: str) -> ctypes.CDLL:
        raise OSError("no such library")

    sensors = GpuSensors(0, absent)
    assert sensors() == {}
    assert sensors.busy() is None


def test_a_python_without_torch_is_said(tmp_path: Path) -> None:
    fake = program_that_prints(tmp_path, '{"error": "torch is not installed for python"}\n', status=3)
    around = Surroundings(cores=2, memory=1e9, folder=tmp_path, quick=True)
    with pytest.raises(CannotMeasure, match="torch is not installed"):
        list(take_torch(str(fake), "cpu", 0, around, 1.0, ()))
    with pytest.raises(CannotMeasure, match="cannot be started"):
        list(take_torch(str(tmp_path / "absent"), "cpu", 0, around, 1.0, ()))


@pytest.mark.slow
def test_framework_kernels_run_on_the_cpu(tmp_path: Path) -> None:
    python = os.environ.get("STOWPLAN_TEST_TORCH")
    if not python:
        pytest.skip("STOWPLAN_TEST_TORCH names no Python that has torch")
    around = Surroundings(cores=1, memory=1e9, folder=tmp_path, quick=True)
    found = list(take_torch(python, "cpu", 0, around, 2.0, ()))
    names = {taking.name for taking in found}
    assert names == {"torch.gemm", "torch.attention", "torch.moe", "torch.norm", "torch.add", "torch.sampling"}
    assert all(taking.tool.startswith("torch 2") for taking in found)
    gemm = max(found, key=lambda taking: taking.amounts.get("flops", 0.0) / taking.samples.figure)
    assert 1e9 < gemm.amounts["flops"] / gemm.samples.figure < 1e13
