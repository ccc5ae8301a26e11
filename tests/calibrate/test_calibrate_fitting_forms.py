"""Kernel forms: arrays say what floats say, and planted kernels are found again from noisy samples with outliers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from stowplan.errors import BadFile
from stowplan.kernel_forms import forms_for
from stowplan.kernel_forms.allreduce import RingForm
from stowplan.kernel_forms.attention import DecodeForm
from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.gemm import GemmForm
from stowplan.kernel_forms.library import datasheet
from stowplan.kernel_forms.parameters import build_form
from stowplan.machines.library import load_gpu
from stowplan_calibrate.fitting import allreduce, attention, gemm, grids
from stowplan_calibrate.fitting.arrays import ARRAYS
from stowplan_calibrate.fitting.grid_files import Grid, read_grid
from stowplan_calibrate.fitting.jobs import run, split_shapes

H200 = datasheet(load_gpu("h200-sxm"))
PLANTED = GemmForm(
    latency=2.4e-6,
    share=0.82,
    small_tile=0.05,
    feed=5.0,
    tile_overhead=6e-7,
    split_overhead=2.8e-6,
    split_traffic=0.7,
    wave=0.4,
    stream=0.88,
    sharpness=2.3,
    cached_weights=5e6,
    cached_activations=4e7,
    cache_time=0.6,
    output=1.2,
)


def table(columns: dict[str, list[object]], seconds: np.ndarray, version: str = "vllm-0.24.0") -> Grid:
    return Grid("h200-sxm", version, {name: tuple(map(str, texts)) for name, texts in columns.items()}, seconds)


def noisy(seconds: np.ndarray, seed: int, outliers: int) -> np.ndarray:
    source = np.random.default_rng(seed)
    values = seconds * source.lognormal(0.0, 0.03, len(seconds))
    values[source.choice(len(values), outliers, replace=False)] *= 4.0
    return values


def shapes(count: int, seed: int, **choices: list[int]) -> dict[str, np.ndarray]:
    source = np.random.default_rng(seed)
    return {name: source.choice(np.array(values, dtype=float), count) for name, values in choices.items()}


def test_arrays_and_floats_agree_in_every_form() -> None:
    own = forms_for(load_gpu("h200-sxm"))
    source = np.random.default_rng(5)
    m, n, k = (source.choice([1.0, 16.0, 100.0, 777.0, 8192.0], 200) * scale for scale in (1.0, 7.0, 3.0))
    for dtype in ("bf16", "fp8", "fp8_block"):
        form = own.choose("gemm", dtype).form
        assert isinstance(form, GemmForm)
        together = form.seconds(own.device, dtype, m, n, k, on=ARRAYS)
        apart = [form.seconds(own.device, dtype, *shape) for shape in zip(m, n, k, strict=True)]
        np.testing.assert_allclose(together, apart, rtol=1e-12)
    batch, context, group = (source.choice([1.0, 2.0, 8.0, 64.0], 200) for _ in range(3))
    for kernel_class in ("decode", "prefill"):
        attend = own.choose(kernel_class, "bf16").form
        shape = (batch, context * 99.0) if kernel_class == "decode" else (batch, context * 99.0, context)
        rest = (group * 2.0, 2.0 + 0.0 * group, 64.0 * batch, 300.0 * group)
        arguments = (*shape, *rest)
        together = attend.seconds(own.device, "bf16", *arguments, on=ARRAYS)
        apart = [attend.seconds(own.device, "bf16", *one) for one in zip(*arguments, strict=True)]
        np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_planted_products_are_found_again() -> None:
    grid = shapes(500, 1, m=[1, 16, 64, 256, 1024, 4096], n=[512, 2048, 4096, 7168, 16384], k=[512, 1024, 4096, 8192])
    truth = PLANTED.seconds(H200, "bf16", grid["m"], grid["n"], grid["k"], warm=True, on=ARRAYS)
    columns: dict[str, list[object]] = {name: list(values) for name, values in grid.items()}
    columns |= {"gemm_dtype": ["bfloat16"] * 500, "kernel_source": ["planted"] * 500}
    (job,) = gemm.jobs(table(columns, noisy(truth, 2, 12)), H200)
    outcome = run(job, seed=3)
    assert np.median(outcome.errors) < 0.035
    inside, _ = split_shapes(job.shape, 3)
    recovered = job.evaluate(outcome.values, np.arange(500))
    assert np.median(np.abs(recovered / truth - 1.0)) < 0.015
    assert np.quantile(np.abs(recovered / truth - 1.0), 0.9) < 0.05
    assert outcome.fit.parameters["stream"] == pytest.approx(PLANTED.stream, rel=0.05)
    assert len(outcome.fit.rejected) >= 2
    assert outcome.fitted_on == len(inside)


def test_planted_decode_attention_is_found_again() -> None:
    planted = DecodeForm(9e-6, 1e-8, 5e-7, 1e-6, 2e-6, 1.0, 2.0, 0.6, 1e-8, 0.8, 0.85, 2.0, 2e7, 0.7, 3.0)
    grid = shapes(
        600,
        4,
        step=[15, 127, 511, 2047, 8191, 32767],
        batch_size=[1, 8, 32, 128, 512],
        num_heads=[8, 32, 64],
        num_key_value_heads=[1, 4, 8],
        head_dim=[64, 128, 256],
    )
    names = ("batch_size", "step", "num_heads", "num_key_value_heads", "head_dim")
    batch, step, heads, kv_heads, dim = (grid[name] for name in names)
    truth = planted.seconds(H200, "bf16", batch, step + 1.0, heads, kv_heads, dim, warm=True, on=ARRAYS)
    columns: dict[str, list[object]] = {name: list(values) for name, values in grid.items()}
    columns |= {"kv_cache_dtype": ["bfloat16"] * 600, "kernel_source": ["planted"] * 600}
    (job,) = attention.decode_jobs(table(columns, noisy(truth, 5, 12)), H200)
    outcome = run(job, seed=1)
    recovered = job.evaluate(outcome.values, np.arange(600))
    assert np.median(np.abs(recovered / truth - 1.0)) < 0.02
    assert outcome.fit.parameters["stream"] == pytest.approx(0.85, rel=0.05)


def test_planted_rings_are_found_again() -> None:
    planted = RingForm(6e-6, 1.5e-6, 0.4, 3e-5, 2e-6, 0.6, 0.65, 0.7, 3.0)
    sizes = [2.0**power for power in range(9, 29)]
    rows = [(gpus, size, op) for gpus in (2, 4, 8) for size in sizes for op in ("all_reduce", "all_gather")]
    gpus, size = (np.array([float(row[i]) for row in rows]) for i in (0, 1))
    turns = np.array([2.0 if row[2] == "all_reduce" else 1.0 for row in rows])
    truth = planted.seconds(H200, 2.0 * size, gpus, turns, on=ARRAYS)
    columns: dict[str, list[object]] = {
        "num_gpus": list(gpus),
        "message_size": list(size),
        "op_name": [row[2] for row in rows],
        "nccl_dtype": ["half"] * len(rows),
    }
    outcome = run(allreduce.ring_job(table(columns, noisy(truth, 6, 3), "nccl-2.29.2"), H200), seed=2)
    assert outcome.fit.parameters["four"] == pytest.approx(0.65, rel=0.1)
    assert np.median(outcome.errors) < 0.05


def test_halves_share_no_shape() -> None:
    shape = {"m": np.array([1.0, 1.0, 2.0, 2.0, 3.0, 4.0] * 20), "n": np.repeat(np.arange(20.0), 6)}
    inside, outside = split_shapes(shape, 11)
    pairs = [{(shape["m"][i], shape["n"][i]) for i in half} for half in (inside, outside)]
    assert not pairs[0] & pairs[1]
    assert len(pairs[0]) == len(pairs[1])
    assert np.array_equal(inside, split_shapes(shape, 11)[0])
    assert not np.array_equal(inside, split_shapes(shape, 12)[0])


def test_forms_are_built_by_name() -> None:
    with pytest.raises(TypeError, match="speed"):
        build_form("gemm", {"speed": 1.0})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gemm.csv.gz", "latency\n1.0\n", "is not named"),
        ("x9000__gemm_perf__v1.csv.gz", "latency\n1.0\n", "is not named"),
        ("l40s__gemm_perf__v1.csv.gz", "m,n,k\n1,2,3\n", "column 'latency'"),
        ("l40s__gemm_perf__v1.csv.gz", "m,latency\n1,fast\n", "line 2: latency 'fast'"),
        ("l40s__gemm_perf__v1.csv.gz", "m,latency\n1,0.5\n2,-1\n", "line 3: latency '-1'"),
    ],
)
def test_wrong_grids_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(BadFile, match=message):
        read_grid(path)


def test_damaged_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l40s__gemm_perf__v1.csv.gz"
    path.write_bytes(gzip.compress(b"m,latency\n1,0.5\n" * 500)[:60])
    with pytest.raises(BadFile, match="cannot be read"):
        read_grid(path)


def test_command_reports_wrong_input_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l40s__gemm_perf__v1.csv.gz"
    path.write_bytes(gzip.compress(b"m,latency\n1,0\n"))
    assert grids.main(["--data", str(tmp_path), "--gpu", "l40s"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_device_stands_for_any_gpu() -> None:
    slow = Device("slow", 10.0, 1e11, {"fp32": 1e12}, 1e9)
    assert PLANTED.seconds(slow, "bf16", 64.0, 4096.0, 4096.0) > PLANTED.seconds(H200, "bf16", 64.0, 4096.0, 4096.0)
