"""Kernels' rates: which constants a format and a processor take, and what bounds them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.strategies import machine_of, setup_of

from stowplan.figures import Figures, figures_for
from stowplan.kernels import (
    AttentionKernel,
    CpuKernels,
    GpuKernels,
    Layout,
    RoutedRun,
    family,
    idle_constants,
    kernel_names,
    vector_units,
)
from stowplan.ops import Kind, Operator, Part
from stowplan.plan import Workload
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

ADA = "rtx-4080 + ryzen-9-7950x + ddr5-5200x2:64GiB"
SERVER = "epyc-9355 + ddr5-6400x12:768GiB"


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


def test_one_wide_arm_core_reads_more_of_memory_than_others() -> None:
    """An M1 Max core alone reads 102 GB/s, cores of a Ryzen 9 7950X 65 GB/s for two."""
    arm, desktop = cpu("apple-m2-max-cpu + lpddr5-6400x8:64GiB"), cpu("ryzen-9-7950x + ddr5-5200x2:64GiB")
    assert 50e9 < arm.stream < 102e9
    assert desktop.stream == pytest.approx(40e9)


def test_attention_over_a_tile_of_queries_is_one_rate_of_three() -> None:
    kernels = cpu(SERVER, "llama.cpp")
    op = Operator("attention", Part.KV, Kind.ATTENTION, 1e12, kv_read=1e6, m=512)
    plain, tiled = (kernels.work(op, tiled=way).amounts["host.cores"] for way in (False, True))
    assert plain == pytest.approx(1e12 / kernels.attention)
    assert tiled == pytest.approx(1e12 / kernels.tiled)
    assert kernels.attention < kernels.tiled < kernels.unfused * 1.2


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
        (("avx2", "avx512", "vnni"), 64, "wide-intel"),
        (("avx2", "avx512", "vnni", "bf16"), 64, "wide"),
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


def test_tiles_of_few_rows_are_mostly_padding() -> None:
    kernels, run = gpu("rtx-3090 + ryzen-9-7950x + ddr5-5200x2:64GiB"), RoutedRun(128.0, 0.0)

    def seconds(rows: float, run: RoutedRun = run) -> float:
        return kernels.work(product(rows, part=Part.EXPERT_UP), routed=run).amounts["gpu0.compute"]

    assert seconds(16) == pytest.approx(seconds(8), rel=0.01)
    assert 1.0 < seconds(64) / seconds(8) < 1.3
    full = 2 * 4096 * 14336 * 2048 / kernels.gemm["k"]
    assert seconds(2048) == pytest.approx(kernels.routed * full)
    assert seconds(8, RoutedRun(16.0, 0.0)) < 0.5 * seconds(8)
    assert seconds(8, RoutedRun(128.0, 1e6)) == pytest.approx(seconds(8) + 1e6 / kernels.memory)
    assert seconds(8, RoutedRun(0.0, 0.0)) < seconds(8)


def test_power_does_not_bind_padding() -> None:
    full, low = (gpu(ADA, **{"gpu0.power": watts}) for watts in (320.0, 40.0))
    few, many = (product(rows, part=Part.EXPERT_UP) for rows in (4, 4096))
    run = RoutedRun(128.0, 0.0)
    slower = {
        op.m: low.work(op, routed=run).amounts["gpu0.compute"] / full.work(op, routed=run).amounts["gpu0.compute"]
        for op in (few, many)
    }
    assert slower[4] == pytest.approx(1.0)
    assert slower[4096] > 2.0


def test_a_recurrence_goes_from_token_to_token() -> None:
    kernels = gpu(ADA)

    def scan(tokens: int) -> Operator:
        cells = 32 * 128 * 128
        flops = 7.0 * cells * tokens
        return Operator("recurrence", Part.KV, Kind.RECURRENCE, flops, kv_read=4.0 * cells, m=tokens, format="f32")

    long, short = (kernels.work(scan(tokens)).amounts["gpu0.compute"] for tokens in (2048, 512))
    assert long == pytest.approx(4 * short)
    assert 0.1e-6 < short / 512 < 2e-6  # a microsecond of a layer with 32 heads on a chip with 76 multiprocessors
    attention = replace(scan(512), kind=Kind.ATTENTION)
    assert kernels.work(attention).amounts["gpu0.compute"] < 0.2 * short


def test_chips_without_matrix_units_reach_less_of_their_dot_products() -> None:
    found = {}
    for name in ("gtx-1650", "t4", "l20"):
        figures = figures_for(machine_of(f"{name} + core-i7-7700 + ddr4-2400x2:32GiB"), "llama.cpp")
        kernels = GpuKernels.build(figures, 0, "llama.cpp", "nvidia")
        found[name] = kernels.gemm["k"] * kernels.unlimited / figures.value("gpu0.peak.int8")
    assert found["gtx-1650"] == pytest.approx(0.3)
    assert found["t4"] <= 0.4
    assert found["l20"] > 0.3


def test_a_cache_is_read_again_for_heads_that_share_no_read() -> None:
    kernels = gpu(ADA)
    base = Operator("attention", Part.KV, Kind.ATTENTION, 1.0, kv_read=1e8)

    def seconds(group: int, rows: float = 1.0) -> float:
        return kernels.work(replace(base, group=group, m=rows)).amounts["gpu0.compute"]

    assert seconds(1) == seconds(4) == seconds(8) < seconds(12) == pytest.approx(3 * seconds(8))
    assert seconds(128) == pytest.approx(kernels.passes * seconds(8))
    assert seconds(12, rows=512) == seconds(8, rows=512)


def decode_attention(group: int, cache: str = "f16") -> Operator:
    """Attention of one query over 32,768 tokens: 8 key/value heads of 128 elements."""
    rows = 8 * 32768.0
    size = rows * 256 * {"f16": 2.0, "q8_0": 34 / 32}[cache]
    return Operator(
        "attention",
        Part.KV,
        Kind.ATTENTION,
        flops=4 * 128 * group * rows,
        kv_read=size,
        m=1,
        format=cache,
        group=group,
        scores=group * rows,
    )


def test_heads_that_read_the_cache_by_themselves_take_time_each() -> None:
    kernels = gpu(ADA)
    seconds = [
        kernels.work(decode_attention(group, cache), attention=AttentionKernel.VECTOR).amounts["gpu0.compute"]
        for group, cache in ((4, "f16"), (8, "f16"), (16, "f16"), (16, "q8_0"))
    ]
    assert seconds[1] == pytest.approx(2 * seconds[0])
    assert seconds[2] == pytest.approx(4 * seconds[0])
    assert seconds[3] == seconds[2]


def test_heads_share_a_read_of_the_cache_by_powers_of_two() -> None:
    kernels = gpu(ADA)
    seconds = {
        group: kernels.work(decode_attention(group), attention=AttentionKernel.MATRIX).amounts["gpu0.compute"]
        for group in (2, 4, 8, 12, 16)
    }
    assert seconds[2] == seconds[4] == seconds[8]
    assert seconds[16] == pytest.approx(2 * seconds[8])
    assert seconds[12] == pytest.approx(3 * seconds[8])


def test_padded_heads_share_a_read_whatever_their_number() -> None:
    kernels = gpu(ADA)
    op = decode_attention(6)
    alone, shared = (kernels.work(op, attention=AttentionKernel.MATRIX, shared=heads) for heads in (None, 6.0))
    assert alone.amounts["gpu0.compute"] == pytest.approx(3 * shared.amounts["gpu0.compute"])


def test_matrix_units_read_a_quantised_cache_as_halves() -> None:
    kernels, plain, short = gpu(ADA), decode_attention(16), decode_attention(16, "q8_0")
    moved = {kernel: kernels.work(short, attention=kernel).amounts["gpu0.hbm"] for kernel in (*AttentionKernel, None)}
    assert moved[AttentionKernel.VECTOR] == moved[None] == short.kv_read
    assert moved[AttentionKernel.MATRIX] == pytest.approx(short.kv_read + 2 * plain.kv_read)
    assert kernels.work(plain, attention=AttentionKernel.MATRIX).amounts["gpu0.hbm"] == plain.kv_read


def test_the_first_pass_over_weights_waits_for_memory_and_the_rest_does_not() -> None:
    kernels = cpu(SERVER, stalls=1.0)
    op = replace(product(64), n=14336)
    fetch, later, after = kernels.in_passes(op, Layout.PLAIN)
    assert fetch.amounts["host.dram"] == op.weight_bytes
    assert "host.dram" not in later.amounts
    assert kernels.columns is not None
    waiting = kernels.stall * op.weight_bytes
    first = fetch.amounts["host.cores"] - waiting
    assert first / (first + later.amounts["host.cores"]) == pytest.approx(kernels.columns / 64)
    assert first + later.amounts["host.cores"] + waiting == pytest.approx(
        kernels.work(op, Layout.PLAIN).amounts["host.cores"]
    )
    assert after.amounts["host.dram"] == pytest.approx(kernels.element_bytes * 64 * 14336)
    assert kernels.in_passes(product(1), Layout.PLAIN) == (kernels.work(product(1)),)


def test_layouts_of_weights_have_rates_of_their_own() -> None:
    kernels = cpu(ADA)
    seconds = {
        (layout, rows): kernels.work(product(rows), layout).amounts["host.cores"]
        for layout in Layout
        for rows in (1, 32, 512)
    }
    assert seconds[Layout.ROWS, 1] < seconds[Layout.PLAIN, 1]
    assert seconds[Layout.ROWS, 512] < seconds[Layout.PLAIN, 512]
    assert seconds[Layout.UNPACKED, 512] < seconds[Layout.PLAIN, 512]
    assert seconds[Layout.UNPACKED, 32] > 0.8 * seconds[Layout.PLAIN, 32]


def test_wide_units_are_half_empty_under_kernels_with_narrow_vectors() -> None:
    def per_clock(spec: str, key: str, layout: Layout) -> float:
        seconds = cpu(spec).work(product(512, key), layout).amounts["host.cores"]
        return 1.0 / (seconds * figures_for(machine_of(spec), "llama.cpp").value("host.clock"))

    plain, narrow = (
        per_clock(SERVER, "q4_k", layout) / per_clock(ADA, "q4_k", layout) for layout in (Layout.PLAIN, Layout.ROWS)
    )
    assert 1.0 < narrow < plain


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
