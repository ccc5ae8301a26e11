"""KTransformers' kernels themselves: they choose the experts of the plan, and compute all others on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exports.gguf_files import small, write_gguf
from tests.exports.plain_plans import SPEC, plain_plan
from tests.exports.python_engines import talk
from tests.strategies import machine_of, model_of

from stowplan.errors import NotExpressible
from stowplan.exports.flat_yaml import read_yaml
from stowplan.exports.ktransformers import CONFIG, EXPERTS, MAKER, KTransformersExporter, ranges
from stowplan.models import load_model
from stowplan.models.model import Model
from stowplan.planner.predict import make_setup
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp

AVX2, AVX512 = "epyc-7742 + ddr4-3200x8:2TiB", "xeon-platinum-8480 + ddr5-4800x8:2TiB"
BF16_ROUNDING = 0.01  # of the inputs, the products of gate and up, and the answer, each to 8 bits


def setup_of(model: Model) -> Setup:
    return make_setup(machine_of(SPEC), model, LlamaCpp())


def exported(setup: Setup, chosen: dict[int, set[int]], folder: Path) -> dict[str, Any]:
    """Write a plan's files, and give its flags."""
    stated = {"experts": {str(layer): ranges(frozenset(ids)) for layer, ids in chosen.items()}}
    exporter = KTransformersExporter()
    files = exporter.files(setup, exporter.nearest(setup, plain_plan(setup, "ktransformers", stated)))
    for name in (EXPERTS, MAKER):
        (folder / name).write_text(files.contents[name])
    return dict(read_yaml(files.contents[CONFIG], CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{1: {0, 1, 2}}, {3: {7, 9, 63}, 4: set(range(64)), 26: {5}}, {5: {1}, 6: {1}}])
def test_ktransformers_chooses_exactly_the_experts_of_the_plan(
    kt_python: Path, chosen: dict[int, set[int]], tmp_path: Path
) -> None:
    flags = exported(setup_of(model_of("deepseek-v2-lite", "fp8")), chosen, tmp_path)
    talk(kt_python, str(tmp_path / MAKER), [])
    words = [str(tmp_path / str(flags["init-expert-location"])), str(flags["kt-gpu-experts-ratio"]), "26"]
    answer = talk(kt_python, "host_kt.py", ["choose", *words])[0]
    assert len(answer) == 27
    assert {layer: set(ids) for layer, ids in enumerate(answer) if ids} == chosen


@pytest.mark.slow
@pytest.mark.parametrize("method", ["BF16", "LLAMAFILE"])
def test_loaded_kernels_compute_the_experts_that_are_not_on_the_gpu_and_no_others(
    kt_python: Path, method: str, tmp_path: Path
) -> None:
    weights = tmp_path / ("checkpoint" if method == "BF16" else "experts.gguf")
    if method == "BF16":
        talk(kt_python, "host_kt.py", ["make", str(weights)])
        model = load_model(str(weights))
    else:
        model = write_gguf(weights, small("qwen3-30b-a3b", layers=3), "f16", seed=5)
    setup = setup_of(model)
    routed = [layer for layer in model.layers if layer.experts]
    experts = routed[0].experts
    assert experts is not None
    chosen = {0: {0, 3, 4, experts.total - 1}, 2: {1, 6}}
    flags = exported(setup, chosen, tmp_path)
    assert flags["kt-method"] == method
    talk(kt_python, str(tmp_path / MAKER), [])
    job = {
        "tensor": str(tmp_path / str(flags["init-expert-location"])),
        "ratio": flags["kt-gpu-experts-ratio"],
        "layers": len(routed),
        "experts": experts.total,
        "active": experts.active,
        "hidden": model.hidden,
        "width": next(t.rows for t in routed[0].tensors if t.name.endswith("ffn_up_exps.weight")),
        "method": method,
        "weights": str(weights),
        "pools": flags["kt-threadpool-count"],
        "gpu": {str(layer): sorted(ids) for layer, ids in chosen.items()},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    answer = talk(kt_python, "host_kt.py", ["run", str(tmp_path / "job.json")])[0]
    assert len(answer) == len(model.layers)
    for layer, seen in answer.items():
        on_cpu = sorted(set(range(experts.total)) - chosen.get(int(layer), set()))
        assert seen["decoded"] == on_cpu
        assert seen["prompt"] == on_cpu
        assert 0.0 < seen["error"] < BF16_ROUNDING
        assert 0.0 < seen["mixed"] < BF16_ROUNDING


@pytest.mark.parametrize(
    ("key", "quant", "host", "method"),
    [
        ("deepseek-v2-lite", "bf16", AVX2, "BF16"),
        ("deepseek-v3", "fp8", AVX2, "FP8"),
        ("qwen3-30b-a3b", "gptq", AVX512, "GPTQ_INT4"),
        ("deepseek-v2-lite", "awq", AVX512, "AMXINT4"),
        ("qwen3-30b-a3b", "awq", AVX2, "LLAMAFILE"),
    ],
)
def test_the_kernel_reads_the_checkpoints_own_experts_where_there_is_one(
    key: str, quant: str, host: str, method: str, tmp_path: Path
) -> None:
    setup = make_setup(machine_of(f"rtx-3090 + {host}"), model_of(key, quant), LlamaCpp())
    assert exported(setup, {5: {1}}, tmp_path)["kt-method"] == method


def test_experts_that_no_kernel_takes_are_refused_before_export(tmp_path: Path) -> None:
    with pytest.raises(NotExpressible, match="1408 wide; plan it again with --quant bf16 or fp8"):
        exported(setup_of(model_of("deepseek-v2-lite", "awq")), {5: {1}}, tmp_path)
