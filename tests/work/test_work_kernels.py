"""Kernels' rates: which constants a format and a processor take, and what bounds them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.strategies import machine_of, setup_of

from stowplan.figures import Figures, figures_for
from stowplan.kernels import CpuKernels, GpuKernels, family, idle_constants, kernel_names, vector_units
from stowplan.ops import Kind, Operator, Part
from stowplan.plan import Workload
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

ADA = "rtx-4080 + ryzen-9-7950x + ddr5-5200x2:64GiB"


def product(rows: float, key: str = "q4_k", part: Part = Part.FFN_UP) -> Operator:
    weights = 4096.0 * 14336
    return Operator(
        "ffn_up",
        part,
        Kind.MATMUL,
        2 * rows * weights,
        weight_bytes=0.5625 * weights,
        m=rows,
        format=key,
        weights=weights,
    )


def gpu(spec: str, **changes: float) -> GpuKernels:
    figures = figures_for(machine_of(spec), "llama.cpp")
    moved = {name: replace(figures[name], value=value) for name, value in changes.items()}
    return GpuKernels.build(Figures({**figures, **moved}), 0, "llama.cpp", machine_of(spec).gpus[0].vendor)


def cpu(spec: str, engine: str = "ik_llama.cpp", threads: int = 16, stalls: float = 0.0) -> CpuKernels:
    machine = machine_of(spec)
    figures = figures_for(machine, "llama.cpp", engine)
    return CpuKernels.build(figures, "llama.cpp", machine.cpu.isa, threads, stalls=stalls)


def test_interleaved_rows_count_as_the_plain_format() -> None:
    assert kernel_names("iq4_ks_r4") == kernel_names("iq4_ks") == ("iq4_ks", "iqk", "iq")
    assert kernel_names("q8_0_r8")[0] == "q8_0"
    assert kernel_names("4.25bpw")[-1] == family("4.25bpw") == "k"


@pytest.mark.parametrize(
    ("isa", "lanes", "first"),
    [
        (("avx2",), 32, "avx2"),
        (("avx2", "avx-vnni"), 32, "vnni"),
        (("avx2", "avx512"), 64, "avx512"),
        (("avx2", "avx512", "vnni"), 32, "vnni"),
        (("avx2", "avx512", "vnni"), 64, "wide"),
        (("avx2", "avx512", "vnni", "amx"), 64, "amx"),
        (("neon", "dotprod"), 32, "neon"),
    ],
)
def test_vector_units(isa: tuple[str, ...], lanes: float, first: str) -> None:
    assert vector_units(isa, lanes)[0] == first


def test_power_bounds_large_products_and_not_single_rows() -> None:
    full, half = gpu(ADA), gpu(ADA, **{"gpu0.power": 100.0})
    many, one = product(2048, "f16"), product(1, "f16")
    assert half.work(many).amounts["gpu0.compute"] > 1.5 * full.work(many).amounts["gpu0.compute"]
    assert half.work(one) == full.work(one)


def test_dequantised_weights_cost_their_traffic_and_use_the_kernels_of_halves() -> None:
    kernels, op = gpu(ADA), product(512)
    halves = kernels.work(replace(op, format="f16")).amounts["gpu0.compute"]
    turned = kernels.work(op, dequantise=True).amounts["gpu0.compute"]
    assert turned == pytest.approx(halves + (op.weight_bytes + 2 * op.weights) / kernels.memory)


def test_products_of_routed_experts_take_longer_than_one_of_as_many_rows() -> None:
    kernels = gpu(ADA)
    dense, routed = (kernels.work(product(64, part=part)) for part in (Part.FFN_UP, Part.EXPERT_UP))
    assert routed.amounts["gpu0.compute"] > dense.amounts["gpu0.compute"]
    one = [kernels.work(product(1, part=part)) for part in (Part.FFN_UP, Part.EXPERT_UP)]
    assert one[0] == one[1]


def test_a_cache_is_read_again_for_heads_that_share_no_read() -> None:
    kernels = gpu(ADA)
    base = Operator("attention", Part.KV, Kind.ATTENTION, 1.0, kv_read=1e8)

    def seconds(group: int, rows: float = 1.0) -> float:
        return kernels.work(replace(base, group=group, m=rows)).amounts["gpu0.compute"]

    assert seconds(1) == seconds(4) == seconds(8) < seconds(12) == pytest.approx(3 * seconds(8))
    assert seconds(128) == pytest.approx(kernels.passes * seconds(8))
    assert seconds(12, rows=512) == seconds(8, rows=512)


def test_rows_of_few_tokens_are_multiplied_one_by_one_and_many_together() -> None:
    kernels = cpu(ADA)
    single = kernels.work(product(1)).amounts["host.cores"]
    seconds = [kernels.work(product(rows)).amounts["host.cores"] for rows in (1, 2, 4, 8, 32, 512)]
    assert seconds == sorted(seconds)
    assert seconds[1] <= 2 * single
    assert seconds[-1] < 512 * single / 2


def test_waiting_for_memory_grows_with_bytes_and_only_where_it_is_said() -> None:
    spec = "epyc-9355 + ddr5-6400x12:768GiB"
    seconds = [cpu(spec, stalls=stalls).work(product(1)).amounts["host.cores"] for stalls in (0.0, 1.0, 2.0, 3.0)]
    assert seconds[0] < seconds[1]
    assert seconds[3] - seconds[2] == pytest.approx(seconds[2] - seconds[1])


@pytest.mark.parametrize(("key", "quant"), [("qwen3-30b-a3b", "q4_k_m"), ("llama-3.1-8b", "iq4_xs")])
def test_idle_constants_move_nothing(key: str, quant: str) -> None:
    setup = setup_of(ADA, (), key, quant)
    workload, settings = Workload(prompt=100, generate=10), LlamaCppSettings(op_offload=False)
    run = LlamaCppRun(setup, workload, settings)
    placement = experts_in_ram(run, len(setup.model.layers))
    plan = make_plan(setup.machine, (key, quant), workload, settings, placement)
    base = LlamaCpp().evaluate(setup, plan)
    idle = idle_constants(setup.figures, "llama.cpp", setup.machine, setup.model)
    assert "llama.cpp.cpu.gemv.iq" in idle
    assert not any(name.endswith((".stall", ".dram_share")) for name in idle)
    for name in idle:
        moved = LlamaCpp().evaluate(replace(setup, figures=setup.figures.scaled(name, 0.5)), plan)
        assert (moved.decode_s, moved.prefill_s) == (base.decode_s, base.prefill_s), name


def test_every_gpu_of_nvidia_says_its_process() -> None:
    for key in ("rtx-3090", "rtx-4090", "a100-80gb-sxm", "h100-pcie", "v100-16gb-pcie"):
        machine = machine_of(f"{key} + epyc-7742 + ddr4-3200x8:512GiB")
        assert machine.gpus[0].process
