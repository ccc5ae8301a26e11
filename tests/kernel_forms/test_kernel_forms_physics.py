"""What must hold of kernel times whatever their parameters: no faster than the memory, never slower on a better GPU."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.kernel_forms import KernelForms, forms_for
from stowplan.kernel_forms.device import VALUE_BYTES, Device
from stowplan.kernel_forms.routing import TILE_ROWS, even_load, skewed_load, strided_load
from stowplan.machines.library import list_keys, load_gpu

MEASURED = ("a100-80gb-sxm", "b200", "h100-sxm", "h200-sxm", "l40s")
WIDTHS = st.sampled_from([128, 512, 1024, 2048, 3584, 4096, 7168, 8192, 14336])
ROWS = st.integers(1, 16384)


@cache
def forms(key: str) -> KernelForms:
    return forms_for(load_gpu(key))


def on_device(base: KernelForms, **changes: float) -> KernelForms:
    """The same kernels on a GPU with other datasheet figures."""
    fields: dict[str, object] = dict(changes)
    if "compute" in changes:
        factor = float(changes["compute"])
        del fields["compute"]
        fields["peaks"] = {name: factor * value for name, value in base.device.peaks.items()}
    device: Device = dataclasses.replace(base.device, **fields)  # type: ignore[arg-type]
    return dataclasses.replace(base, device=device)


@settings(deadline=None, max_examples=60)
@given(key=st.sampled_from(MEASURED), m=ROWS, n=WIDTHS, k=WIDTHS, dtype=st.sampled_from(["bf16", "fp8", "fp8_block"]))
def test_product_is_bounded_by_memory_and_arithmetic(key: str, m: int, n: int, k: int, dtype: str) -> None:
    own = forms(key)
    seconds = own.gemm_s(m, n, k, dtype)
    assert seconds >= VALUE_BYTES[dtype] * n * k / own.bandwidth
    assert seconds >= 2.0 * m * n * k / own.device.peak(dtype) / 1.3  # 1.3: largest share that a fit may take
    assert math.isfinite(seconds)


@settings(deadline=None, max_examples=40)
@given(key=st.sampled_from(MEASURED), m=ROWS, n=WIDTHS, k=WIDTHS, factor=st.floats(1.0, 4.0))
def test_better_gpu_is_never_slower(key: str, m: int, n: int, k: int, factor: float) -> None:
    own = forms(key)
    seconds = own.gemm_s(m, n, k)
    assert on_device(own, bandwidth=factor * own.bandwidth).gemm_s(m, n, k) <= seconds * (1 + 1e-9)
    assert on_device(own, compute=factor).gemm_s(m, n, k) <= seconds * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(key=st.sampled_from(MEASURED), m=ROWS, more=st.integers(1, 4096), n=WIDTHS, k=WIDTHS)
def test_more_rows_never_take_less_time_in_bf16(key: str, m: int, more: int, n: int, k: int) -> None:
    assert forms(key).gemm_s(m + more, n, k) >= forms(key).gemm_s(m, n, k) * (1 - 1e-9)


@settings(deadline=None, max_examples=40)
@given(
    key=st.sampled_from(MEASURED),
    batch=st.integers(1, 512),
    context=st.integers(1, 65536),
    group=st.sampled_from([1, 4, 8]),
    kv_heads=st.sampled_from([1, 2, 8]),
    dtype=st.sampled_from(["bf16", "fp8"]),
)
def test_decode_reads_its_cache(key: str, batch: int, context: int, group: int, kv_heads: int, dtype: str) -> None:
    own = forms(key)
    seconds = own.decode_attention_s(batch, context, group * kv_heads, kv_heads, 128, dtype)
    stored = 2.0 * batch * context * kv_heads * 128 * VALUE_BYTES[dtype]
    assert seconds >= stored / own.bandwidth / 1.1  # 1.1: largest share that a fit may take
    longer = own.decode_attention_s(batch, 2 * context, group * kv_heads, kv_heads, 128, dtype)
    assert longer >= seconds * (1 - 1e-9)


@pytest.mark.parametrize("key", MEASURED)
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8_block"])
def test_mean_rows_need_not_be_whole(key: str, dtype: str) -> None:
    own = forms(key)
    for rows in (0.0, 0.4, 16.5, 64.5, 128.3, 256.7):
        assert own.gemm_s(rows, 4096, 4096, dtype) <= own.gemm_s(math.ceil(rows) or 1, 4096, 4096, dtype) * (1 + 1e-9)
    assert own.decode_attention_s(2.5, 1000.5, 32, 8, 128) > 0.0
    assert own.moe_s(2.5, 4096, 1536, 128, 8) > 0.0


@pytest.mark.parametrize("key", MEASURED)
def test_window_makes_long_contexts_cheap(key: str) -> None:
    whole = forms(key).decode_attention_s(32, 32768, 64, 8, 128)
    assert forms(key).decode_attention_s(32, 32768, 64, 8, 128, window=1024) < 0.3 * whole
    prompt = forms(key).prefill_attention_s(16384, 0, 64, 8, 128)
    assert forms(key).prefill_attention_s(16384, 0, 64, 8, 128, window=1024) < 0.3 * prompt


@pytest.mark.parametrize("key", MEASURED)
@pytest.mark.parametrize("window", [None, 2048])
def test_prompt_in_chunks_does_no_less_work_than_at_once(key: str, window: int | None) -> None:
    once = forms(key).prefill_attention_s(8192, 0, 32, 8, 128, window=window)
    chunks = sum(forms(key).prefill_attention_s(1024, past, 32, 8, 128, window=window) for past in range(0, 8192, 1024))
    assert once * 0.9 <= chunks <= once * 3.0


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 5000),
    experts=st.sampled_from([8, 64, 128, 160, 256]),
    top=st.sampled_from([1, 2, 6, 8]),
    parallel=st.sampled_from([1, 2, 4, 8]),
)
def test_loads_account_for_every_pair(tokens: int, experts: int, top: int, parallel: int) -> None:
    local = experts // parallel
    for load in (
        even_load(tokens, experts, top, parallel),
        strided_load(tokens, experts, top, parallel),
        skewed_load(tokens, experts, top, parallel, 1.01),
    ):
        assert 0.0 <= load.touched <= local + 1e-9
        assert load.touched <= load.pairs + 1e-9
        for rows, tiles in zip(TILE_ROWS, load.tiles, strict=True):
            assert tiles * rows >= load.pairs - 1e-6
            assert tiles >= load.touched - 1e-6
    assert even_load(tokens, experts, top, parallel).pairs == pytest.approx(tokens * top / parallel)
    assert skewed_load(tokens, experts, top, 1, 1.01).pairs == tokens * top
    assert skewed_load(tokens, experts, top, parallel, 1.01).pairs >= tokens * top / parallel - 1e-6


def test_even_load_is_what_random_routing_gives() -> None:
    import random

    source = random.Random(7)
    tokens, experts, top = 96, 64, 4
    touched, tiles = 0.0, 0.0
    for _ in range(400):
        counts = [0] * experts
        for _ in range(tokens):
            for expert in source.sample(range(experts), top):
                counts[expert] += 1
        touched += sum(1 for count in counts if count) / 400
        tiles += sum(-(-count // TILE_ROWS[0]) for count in counts) / 400
    load = even_load(tokens, experts, top)
    assert load.touched == pytest.approx(touched, rel=0.01)
    assert load.tiles[0] == pytest.approx(tiles, rel=0.25)  # the closed form is an interpolation


@pytest.mark.parametrize("key", MEASURED)
def test_experts_stream_what_they_touch(key: str) -> None:
    own = forms(key)
    few, many = own.moe_s(1, 4096, 1536, 128, 8), own.moe_s(256, 4096, 1536, 128, 8)
    expert = 3.0 * 4096 * 1536 * 2.0
    assert few >= 8 * expert / own.bandwidth
    assert many >= 120 * expert / own.bandwidth
    assert own.moe_s(256, 4096, 1536, 128, 8, tensor_parallel=4) < many
    assert own.moe_s(256, 4096, 1536, 128, 8, expert_parallel=8) < many
    assert own.moe_s(256, 4096, 1536, 128, 8, gated=False) < many


@pytest.mark.parametrize("key", MEASURED)
def test_sums_over_gpus(key: str) -> None:
    own = forms(key)
    assert own.all_reduce_s(1e6, 1) == 0.0
    for gpus in (2, 4, 8):
        small, large = own.all_reduce_s(8192, gpus), own.all_reduce_s(256e6, gpus)
        assert 1e-6 < small < large
        assert large >= 256e6 * 2 * (gpus - 1) / gpus / own.device.link / 1.6  # 1.6: in-network sums may save sending


def test_unmeasured_gpus_borrow_and_say_so() -> None:
    own, borrowed = forms("l40s"), forms("rtx-4090")
    assert own.measured and not borrowed.measured
    assert "l40s" in borrowed.provenance
    for name in ("gemm", "prefill", "decode", "moe"):
        assert borrowed.spread[name] > own.spread[name]
    slower = 1008e9 / 864e9
    assert borrowed.decode_attention_s(128, 8192, 32, 8, 128) == pytest.approx(
        own.decode_attention_s(128, 8192, 32, 8, 128) / slower, rel=0.1
    )


def test_every_gpu_with_units_has_forms() -> None:
    for key in list_keys("gpu"):
        gpu = load_gpu(key)
        if gpu.units is None:
            with pytest.raises(InputError, match="units"):
                forms_for(gpu)
            continue
        own = forms_for(gpu)
        assert 0.0 < own.gemm_s(16, 4096, 4096) < 1.0
        assert 0.0 < own.moe_s(16, 2048, 768, 128, 8, "int4") < 1.0
        assert set(own.spread) >= {"gemm", "prefill", "decode", "moe", "all_reduce", "elementwise"}


def test_types_without_a_fit_take_a_relative_and_unknown_ones_are_refused() -> None:
    own = forms("a100-80gb-sxm")
    assert own.gemm_s(1, 8192, 8192, "int4") < own.gemm_s(1, 8192, 8192, "fp8") < own.gemm_s(1, 8192, 8192, "bf16")
    with pytest.raises(InputError, match="no gemm kernel is known for the type 'fp2'"):
        own.gemm_s(1, 8192, 8192, "fp2")


def test_fitted_range_is_known() -> None:
    own = forms("h200-sxm")
    assert own.in_range("gemm", "bf16", m=16, n=4096, k=4096)
    assert not own.in_range("gemm", "bf16", m=1e6, n=4096, k=4096)
    assert not own.in_range("decode", "bf16", context=2e6)


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"numpy", "scipy", "pydantic"}
    code = f"import sys, stowplan.kernel_forms; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
