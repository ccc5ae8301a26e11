"""Every engine: what is written for a plan, read back, is the plan brought to what the engine can do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.strategies import Case, llama_cpp_cases, machine_of, model_of

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.exports import list_engines, load_exporter
from stowplan.exports.base import Exporter, Names
from stowplan.exports.fused import EXPERTS, greedy
from stowplan.exports.lmcache import LmCacheSettings
from stowplan.exports.places import bytes_by_tier, differences, layers_of, misplaced
from stowplan.exports.sglang_flags import SglangFlags
from stowplan.exports.vllm_flags import VllmFlags
from stowplan.models.model import Model
from stowplan.plan import Place, Plan, Workload, run_lengths
from stowplan.planner.predict import make_setup
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_policy import FlexgenSettings
from stowplan.systems.llama_cpp import LlamaCpp

SPEC = "2x rtx-3090 + epyc-7742 + ddr4-3200x8:512GiB + samsung-990-pro:4TB"
ONE = "rtx-3090 + epyc-7742 + ddr4-3200x8:512GiB + samsung-990-pro:4TB"
ROUTED, DENSE = ("qwen3-30b-a3b", "deepseek-v2-lite", "glm-4.5-air"), ("llama-3.1-8b", "opt-6.7b", "qwen2.5-0.5b")
FREE = [engine for engine in list_engines() if engine not in ("llama.cpp-2025-12", "llama.cpp-2025-09", "flexgen")]


@lru_cache(maxsize=32)
def setup_of(spec: str, key: str, quant: str) -> Setup:
    return make_setup(machine_of(spec), model_of(key, quant), LlamaCpp())


def check(exporter: Exporter, setup: Setup, plan: Plan) -> Plan:
    """The plan as the engine will carry it out, written and read back; raises as `nearest`."""
    nearest = exporter.nearest(setup, plan)
    assert exporter.nearest(setup, nearest) == nearest
    files = exporter.files(setup, nearest)
    told = Names.of(nearest)
    if files.main in files.contents:
        assert exporter.read(files.contents[files.main], setup, told) == nearest
    else:
        assert exporter.read(list(files.command), setup, told) == nearest
    for name, text in files.contents.items():
        if name.endswith(".ini"):
            assert exporter.read(text, setup, told) == nearest
    return nearest


def some_place(tiers: list[str]) -> st.SearchStrategy[Place]:
    halves = st.sampled_from([0.25, 0.5, 0.75])
    both = st.tuples(st.permutations(tiers), halves).map(lambda pair: {pair[0][0]: pair[1], pair[0][1]: 1 - pair[1]})
    return st.sampled_from(tiers) | both


@st.composite
def free_plans(draw: st.DrawFn) -> tuple[Setup, Plan]:
    """Plans of no engine in particular: any part of any layer anywhere, in shares as well."""
    spec = draw(st.sampled_from([ONE, SPEC]))
    key = draw(st.sampled_from([*ROUTED, *DENSE]))
    setup = setup_of(spec, key, "bf16")
    tiers = [*(f"gpu{i}" for i in setup.gpus), RAM, DISK]
    kinds = draw(st.lists(st.dictionaries(st.integers(0, 5), some_place(tiers), min_size=6), min_size=1, max_size=3))
    period = draw(st.integers(1, 9))
    layers: list[dict[str, Place]] = []
    for layer in setup.model.layers:
        chosen = kinds[layer.index // period % len(kinds)]
        parts = ["attention", "kv", *sorted(set(_parts(setup.model, layer.index)))]
        layers.append({part: chosen[number % 6] for number, part in enumerate(parts)})
    workload = Workload(prompt=draw(st.integers(1, 2000)), generate=draw(st.integers(1, 200)), batch=1)
    plan = Plan(
        system="any",
        machine=setup.machine.spec,
        model=key,
        quant="bf16",
        workload=workload,
        layers=run_lengths(layers),
        embedding=draw(st.sampled_from(tiers)),
        output=draw(st.sampled_from(tiers)),
    )
    return setup, plan


def _parts(model: Model, index: int) -> Iterator[str]:
    from stowplan.ops import Part, part_of

    yield from (part_of(tensor).value for tensor in model.layers[index].tensors if part_of(tensor) is not Part.MIXER)


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(free_plans(), st.sampled_from(["vllm", "sglang", "deepspeed", "lmcache", "ktransformers"]))
def test_any_plan_brought_to_an_engine_without_planner(case: tuple[Setup, Plan], engine: str) -> None:
    setup, plan = case
    exporter = load_exporter(engine)
    try:
        nearest = check(exporter, setup, plan)
    except NotExpressible as error:
        assert "\n" not in str(error)
        return
    elsewhere = misplaced(setup.model, layers_of(setup.model, plan), layers_of(setup.model, nearest))
    told = [text for text in differences(setup.model, plan, nearest, exporter.title) if "cannot keep" in text]
    assert bool(told) == (elsewhere > 0) or elsewhere < 0.01 * setup.model.weight_bytes


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    llama_cpp_cases(),
    st.sampled_from(["llama.cpp", "ik_llama.cpp", "llama.cpp-2025-12", "llama.cpp-2025-09", "ollama"]),
)
def test_llama_cpp_and_what_is_built_on_it(case: Case, engine: str) -> None:
    try:
        check(load_exporter(engine), case.setup, case.plan)
    except NotExpressible as error:
        assert "without the other" in str(error) or "at a time" in str(error)


@pytest.mark.parametrize("key", ["llama-3.1-8b", "opt-6.7b"])
def test_plans_of_other_systems_are_solved_again(key: str) -> None:
    setup = setup_of(ONE, key, "f16" if key.startswith("opt") else "bf16")
    plan = on_the_gpu(setup, key, setup.model.quant)
    for engine in ("accelerate", "llama.cpp"):
        assert check(load_exporter(engine), setup, plan).system == engine


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(1, 64), st.integers(1, 8), st.booleans()
)
def test_policies_of_flexgen(gpu: int, cpu: int, cache: int, size: int, count: int, compress: bool) -> None:
    setup = make_setup(machine_of(ONE), model_of("opt-6.7b", "f16"), Flexgen())
    policy = FlexgenSettings(
        percent=(gpu, min(cpu, 100 - gpu), cache, 100 - cache, 0, 100),
        gpu_batch_size=size,
        num_gpu_batches=count,
        compress_weight=compress,
        cpu_cache_compute=not compress,
    )
    check(load_exporter("flexgen"), setup, Flexgen().plan(setup, Workload(prompt=128, generate=32), policy))


def on_the_gpu(setup: Setup, key: str, quant: str, **update: Any) -> Plan:
    layers = [
        dict.fromkeys(("attention", "kv", *_parts(setup.model, i)), "gpu0") for i in range(len(setup.model.layers))
    ]
    plan = Plan(
        system="any",
        machine=setup.machine.spec,
        model=key,
        quant=quant,
        workload=Workload(prompt=128, generate=32),
        layers=run_lengths(layers),
        embedding="gpu0",
        output="gpu0",
    )
    return plan.model_copy(update=update)


@pytest.mark.parametrize("engine", FREE)
def test_a_plan_that_fits_the_gpu_is_told_no_difference(engine: str) -> None:
    key = "deepseek-v2-lite" if engine == "ktransformers" else "qwen2.5-0.5b"
    quant = "fp8" if engine == "ktransformers" else "bf16"
    setup = setup_of(ONE, key, quant)
    plan = on_the_gpu(setup, key, quant)
    exporter = load_exporter(engine)
    told = differences(setup.model, plan, check(exporter, setup, plan), exporter.title)
    assert [text for text in told if "embedding" not in text and "output" not in text] == []


vllm_flags = st.builds(
    VllmFlags,
    tensor_parallel=st.sampled_from([1, 2]),
    gpu_memory_utilization=st.sampled_from([0.9, 0.92, 0.5]),
    max_num_seqs=st.integers(1, 512),
    max_num_batched_tokens=st.integers(1, 65536),
    max_model_len=st.none() | st.integers(1, 10**6),
    cache=st.sampled_from(["bf16", "fp8"]),
    prefix_caching=st.booleans(),
    block_tokens=st.sampled_from([16, 32]),
    kv_offload_gib=st.sampled_from([0.0, 8.0, 12.5]),
)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(vllm_flags, st.sampled_from(["", "uva", "prefetch"]), st.integers(1, 60), st.booleans(), st.booleans())
def test_settings_of_vllm(flags: VllmFlags, backend: str, amount: int, experts: bool, disk: bool) -> None:
    setup = setup_of(SPEC, "qwen3-30b-a3b", "bf16")
    segments = EXPERTS if experts else ()
    update: dict[str, Any] = {"kv_disk": "/nvme/kv cache" if disk and flags.kv_offload_gib else ""}
    if backend == "uva":
        update |= {"cpu_offload_gib": amount / 4, "cpu_offload_params": segments}
    if backend == "prefetch":
        update |= {"offload_group_size": amount, "offload_num_in_group": 1 + amount // 3, "offload_params": segments}
        if amount > len(setup.model.layers):
            return
    plan = on_the_gpu(setup, "qwen3-30b-a3b", "bf16", system="vllm", settings=flags.model_copy(update=update).stated())
    check(load_exporter("vllm"), setup, plan)


sglang_flags = st.builds(
    SglangFlags,
    tp_size=st.just(1),
    mem_fraction_static=st.none() | st.sampled_from([0.8, 0.9]),
    context_length=st.none() | st.integers(1, 10**6),
    max_running_requests=st.none() | st.integers(1, 512),
    chunked_prefill_size=st.none() | st.sampled_from([-1, 2048]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8_e5m2"]),
)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(sglang_flags, st.sampled_from(["", "budget", "groups", "paged", "cache"]), st.integers(1, 26))
def test_settings_of_sglang(flags: SglangFlags, kind: str, amount: int) -> None:
    setup = setup_of(SPEC, "deepseek-v2-lite", "bf16")
    updates: dict[str, dict[str, Any]] = {
        "": {},
        "budget": {"cpu_offload_gb": amount},
        "groups": {"offload_group_size": amount, "offload_num_in_group": 1 + amount // 2 if amount > 1 else 1},
        "paged": {"enable_paged_experts": True, "paged_experts_num_resident": 6 + amount},
        "cache": {"enable_hierarchical_cache": True, "hicache_size": amount, "hicache_write_policy": "write_back"},
    }
    update = updates[kind]
    stated = SglangFlags.model_validate(flags.model_dump() | update).stated()
    check(
        load_exporter("sglang"), setup, on_the_gpu(setup, "deepseek-v2-lite", "bf16", system="sglang", settings=stated)
    )


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(1, 26), st.frozensets(st.integers(0, 63), min_size=1), max_size=6))
def test_any_set_of_experts(chosen: dict[int, frozenset[int]]) -> None:
    from stowplan.exports.ktransformers import ranges

    setup = setup_of(ONE, "deepseek-v2-lite", "fp8")
    stated = {"experts": {str(layer): ranges(ids) for layer, ids in sorted(chosen.items())}}
    plan = on_the_gpu(setup, "deepseek-v2-lite", "fp8", system="ktransformers", settings=stated)
    nearest = check(load_exporter("ktransformers"), setup, plan)
    layers = layers_of(setup.model, nearest)
    for index, ids in chosen.items():
        share = layers[index]["ffn_up_exps"]
        assert share == "gpu0" if len(ids) == 64 else share == {"gpu0": len(ids) / 64, RAM: 1 - len(ids) / 64}


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["none", "cpu", "nvme"]),
    st.booleans(),
    st.integers(1, 9),
    st.sampled_from([2e8, 1e9]),
    st.sampled_from([0, 1e5, 1e7]),
    st.sampled_from(["/nvme", "/mnt/a b", '/q"uote']),
)
def test_settings_of_deepspeed(device: str, pin: bool, count: int, size: float, threshold: float, path: str) -> None:
    setup = setup_of(ONE, "llama-3.1-8b", "bf16")
    param = {"device": device, "pin_memory": pin, "buffer_count": count, "buffer_size": 1e9 if size < 6e8 else size}
    param |= {"nvme_path": path} if device == "nvme" else {}
    stated = {"offload_param": param, "param_persistence_threshold": threshold}
    plan = on_the_gpu(setup, "llama-3.1-8b", "bf16", system="deepspeed", settings=stated)
    check(load_exporter("deepspeed"), setup, plan)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([64, 256]),
    st.booleans(),
    st.sampled_from([0.0, 5.0, 12.5]),
    st.none() | st.tuples(st.sampled_from(["file:///nvme/a b/", "file:///x#y/"]), st.sampled_from([1.0, 100.5])),
    st.sampled_from(["LRU", "LFU"]),
    st.none() | st.just({"use_odirect": True}),
)
def test_settings_of_lmcache(
    chunk: int, cpu: bool, size: float, disk: tuple[str, float] | None, policy: str, extra: dict[str, Any] | None
) -> None:
    given_: dict[str, Any] = {
        "chunk_size": chunk,
        "local_cpu": cpu,
        "max_local_cpu_size": size,
        "cache_policy": policy,
        "extra_config": extra,
    }
    given_ |= {"local_disk": disk[0], "max_local_disk_size": disk[1]} if disk else {}
    setup = setup_of(ONE, "llama-3.1-8b", "bf16")
    stated = LmCacheSettings.model_validate(given_).model_dump(mode="json")
    plan = on_the_gpu(setup, "llama-3.1-8b", "bf16", system="lmcache", settings=stated)
    check(load_exporter("lmcache"), setup, plan)


def test_a_smaller_gpu_share_never_grows() -> None:
    """The engines may keep less on the GPU than the plan, never more: a plan that fits stays one that fits."""
    setup = setup_of(ONE, "qwen3-30b-a3b", "bf16")
    every = greedy(setup.model, 1, 2**62)
    assert len(every) == sum(len({name for _, name in every if _ == i}) for i in range(len(setup.model.layers)))
    for engine in ("vllm", "sglang"):
        for share in (0.0,) if engine == "vllm" else (0.4,):
            place: Place = {"gpu0": share, RAM: 1 - share} if 0 < share < 1 else "gpu0" if share else RAM
            layers = [
                {part: place if "exps" in part else "gpu0" for part in ("attention", "kv", *_parts(setup.model, i))}
                for i in range(len(setup.model.layers))
            ]
            plan = on_the_gpu(setup, "qwen3-30b-a3b", "bf16", layers=run_lengths(layers))
            nearest = load_exporter(engine).nearest(setup, plan)
            before, after = (bytes_by_tier(setup.model, layers_of(setup.model, each)) for each in (plan, nearest))
            assert after["gpu"] <= before["gpu"] * (1 + 1e-9)
            assert after["gpu"] >= 0.9 * before["gpu"] - 2**30


def test_what_does_not_fit_is_said() -> None:
    setup = setup_of("rtx-3060 + core-i9-14900k + ddr5-5600x2:32GiB", "qwen3-30b-a3b", "bf16")
    plan = on_the_gpu(setup, "qwen3-30b-a3b", "bf16")
    with pytest.raises((DoesNotFit, NotExpressible)):
        load_exporter("accelerate").nearest(setup, plan)
