"""vLLM as a system: what it can place, what a step costs, and what is left for the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine.simulate import simulate
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.models.model import Role
from stowplan.ops import Part, Step
from stowplan.plan import PlacedLayers, Workload
from stowplan.planner.predict import predict
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.systems.vllm import Vllm
from stowplan.systems.vllm_execution import VllmRun
from stowplan.systems.vllm_kernels import layer_kernels, output_kernels
from stowplan.systems.vllm_memory import GIB, layer_weights, memory_of
from stowplan.systems.vllm_settings import VllmSettings

MACHINE = load_machine("hgx-h100-8")


def setup_of(model: str, quant: str = "bf16", machine: str | None = None) -> Setup:
    chosen = load_machine(machine) if machine else MACHINE
    return Setup(chosen, load_model(model, quant), figures_for(chosen, "vllm"))


@pytest.mark.parametrize(
    ("model", "gpus"),
    [("llama-2-7b", 1), ("llama-2-70b", 4), ("mixtral-8x7b", 2), ("opt-13b", 1), ("qwen3-30b-a3b", 2)],
)
def test_kernels_of_all_gpus_together_read_every_weight_once(model: str, gpus: int) -> None:
    loaded = load_model(model, "bf16")
    found = sum(kernel.weight_bytes for layer in loaded.layers for kernel in layer_kernels(layer, loaded.hidden, gpus))
    found += sum(kernel.weight_bytes for kernel in output_kernels(loaded, gpus))
    matrices = [t for layer in loaded.layers for t in layer.tensors if t.columns > 1]
    whole = sum(t.bytes for t in matrices if t.role is not Role.ROUTER)
    router = sum(t.bytes for t in matrices if t.role is Role.ROUTER)
    head = next(t for t in loaded.globals if t.role is (Role.TOKEN_EMBEDDING if loaded.tied else Role.OUTPUT))
    assert gpus * found == pytest.approx(whole + gpus * router + head.bytes, rel=1e-3)


def test_products_have_the_shapes_that_vllm_fuses_and_splits() -> None:
    layer = load_model("llama-2-70b", "bf16").layers[0]
    shapes = {k.name: (k.n, k.k) for k in layer_kernels(layer, 8192, 4) if k.kind == "gemm"}
    assert shapes == {
        "query, key, value": (2048 + 2 * 256, 8192),
        "attention out": (8192, 2048),
        "gate and up": (2 * 7168, 8192),
        "down": (8192, 7168),
    }
    assert sum(kernel.kind == "all_reduce" for kernel in layer_kernels(layer, 8192, 4)) == 2
    assert not any(kernel.kind == "all_reduce" for kernel in layer_kernels(layer, 8192, 1))


def test_few_key_heads_are_kept_on_several_gpus() -> None:
    setup = setup_of("qwen3-30b-a3b")  # four key heads
    four, eight = (memory_of(setup, VllmSettings(tensor_parallel=gpus)).token for gpus in (4, 8))
    assert four == eight
    assert memory_of(setup, VllmSettings(tensor_parallel=2)).token == 2 * four


def test_cache_of_a_measured_server() -> None:
    """An RTX 4090 with Llama-3.1-8B reported 41,408 tokens; the runtime's size was fitted to it."""
    setup = setup_of("llama-3.1-8b", machine="rtx-4090-desktop-128")
    assert memory_of(setup, VllmSettings(max_num_batched_tokens=2048)).cache_tokens(16) == pytest.approx(
        41408, rel=0.01
    )


def test_offloaded_weights_are_taken_in_order_and_exceed_what_was_asked_by_less_than_a_part() -> None:
    setup = setup_of("llama-3.1-8b")
    weights = list(layer_weights(setup.model, VllmSettings(cpu_offload_gib=2.0)))
    moved = [part for each in weights for part, _ in each.sizes if part in each.offloaded]
    assert 2.0 * GIB <= sum(each.in_host for each in weights) < 2.0 * GIB + 2**28
    first_whole = next(each.layer.index for each in weights if not each.offloaded)
    assert all(not each.offloaded for each in weights[first_whole:])
    assert moved[0] is Part.MIXER
    memory = memory_of(setup, VllmSettings(cpu_offload_gib=2.0))
    assert memory.host + memory.gpu["weights"] == pytest.approx(setup.model.weight_bytes)


def test_reading_weights_through_the_bus_costs_their_bytes_at_every_step() -> None:
    setup = setup_of("llama-3.1-8b")
    on_gpu = VllmRun(setup, VllmSettings())
    away = VllmRun(setup, VllmSettings(cpu_offload_gib=4.0))
    size = sum(each.in_host for each in away.weights)
    step = Step.decode(1, 512)
    seconds = size / setup.figures.value("gpu0.h2d.pinned")
    assert seconds < away.step(step).seconds < seconds + on_gpu.step(step).seconds
    assert max(away.step(step).shares, key=lambda name: away.step(step).shares[name]) == "gpu0.h2d"


def test_steps_are_padded_to_captured_graphs_and_not_beyond_them() -> None:
    run = VllmRun(setup_of("llama-2-7b"), VllmSettings(max_num_seqs=256))
    assert [run.padded(tokens) for tokens in (1, 3, 9, 256, 257, 513, 2000)] == [1, 4, 16, 256, 272, 513, 2000]
    old = VllmRun(setup_of("llama-2-7b"), VllmSettings(engine="vllm-v0"))
    assert old.padded(9) == 9


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 64), st.integers(1, 3000))
def test_more_sequences_or_context_never_make_a_step_faster(gpus: int, batch: int, context: int) -> None:
    run = VllmRun(setup_of("llama-2-70b"), VllmSettings(tensor_parallel=gpus))
    least = run.step(Step.decode(batch, context)).seconds
    assert run.step(Step.decode(2 * batch, context)).seconds >= least * (1 - 0.02)
    assert run.step(Step.decode(batch, 2 * context)).seconds >= least * (1 - 1e-9)


@pytest.mark.parametrize(("gpus", "batch", "prompt"), [(1, 1, 16), (2, 20, 700), (4, 40, 4000)])
def test_the_simulated_step_takes_the_sum_of_its_kernels(gpus: int, batch: int, prompt: int) -> None:
    setup, system = setup_of("codellama-34b"), Vllm()
    sizes = VllmSettings(tensor_parallel=gpus, max_num_batched_tokens=4096)
    plan = system.plan(setup, Workload(batch=batch, prompt=prompt, generate=16), sizes)
    evaluation = system.evaluate(setup, plan)
    assert simulate(system.decode_graph(setup, plan)).makespan == pytest.approx(evaluation.decode_s, rel=1e-9)
    first = VllmRun(setup, sizes).prefill_steps(plan.workload)[0]
    assert simulate(system.prefill_graph(setup, plan)).makespan == pytest.approx(
        VllmRun(setup, sizes).step(first).seconds, rel=1e-9
    )


def test_plans_and_predictions_work_through_the_common_doors() -> None:
    setup = setup_of("llama-2-70b")
    system = load_system("vllm")
    plan = Vllm().plan(setup, Workload(prompt=512, generate=64), VllmSettings(tensor_parallel=4))
    prediction = predict(setup, plan, system)
    assert prediction.command is not None
    assert "--tensor-parallel-size 4" in prediction.command
    assert prediction.memory_bytes["gpu3"].used == prediction.memory_bytes["gpu0"].used
    assert plan.layers[0].places[Part.MIXER.value] == {f"gpu{i}": 0.25 for i in range(4)}


def test_what_cannot_be_said_or_does_not_fit_is_refused() -> None:
    system = Vllm()
    with pytest.raises(NotExpressible, match="needs 16 GPUs"):
        VllmRun(setup_of("llama-2-7b"), VllmSettings(tensor_parallel=16))
    with pytest.raises(NotExpressible, match="heads cannot be split"):
        VllmRun(setup_of("qwen2.5-7b"), VllmSettings(tensor_parallel=8))
    with pytest.raises(NotExpressible, match="q4_k weights are not known"):
        VllmRun(setup_of("llama-3.1-8b", "q4_k_m"), VllmSettings())
    setup = setup_of("llama-2-70b")
    with pytest.raises(DoesNotFit, match="lacks"):
        system.evaluate(setup, system.plan(setup, Workload(), VllmSettings(tensor_parallel=1)))
    small = setup_of("llama-2-7b")
    plan = system.plan(small, Workload(), VllmSettings())
    moved = plan.model_copy(update={"layers": [PlacedLayers(first=0, last=31, places={"attention": "ram"})]})
    with pytest.raises(NotExpressible, match="layer 0"):
        system.evaluate(small, moved)
    with pytest.raises(NotExpressible, match="tensor_parallel"):
        system.evaluate(small, plan.model_copy(update={"settings": {"tensor_parallel": 0}}))


def test_unlike_gpus_are_no_group() -> None:
    mixed = load_machine("h100-sxm + a100-80gb-sxm + xeon-platinum-8480 + ddr5-4800x8:512GiB")
    setup = replace(setup_of("llama-2-7b"), machine=mixed, figures=figures_for(mixed, "vllm"))
    with pytest.raises(NotExpressible, match="must be alike"):
        VllmRun(setup, VllmSettings(tensor_parallel=2))
