"""Plans of published systems: nothing exact beats the floor, the ideal engine bounds the loop, settings are kept."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.comparison import compare
from stowplan.planner.dispatch import plan_for
from stowplan.planner.ideal import decode_floor, step_bytes
from stowplan.planner.published import placed, variants
from stowplan.planner.result import Request
from stowplan.planner.serial_search import Objective
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.systems.published import load_published, published_keys
from stowplan.systems.published.ideal import SYSTEM as IDEAL
from stowplan.systems.published.system import PublishedSystem

HOSTS = (
    "ryzen-9-7950x + ddr5-5600x2:64GiB + samsung-990-pro",
    "core-i9-10900x + ddr4-2933x4:128GiB + samsung-980-pro",
    "epyc-7742 + ddr4-3200x8:512GiB + samsung-pm9a3",
)
GPUS = ("rtx-3060", "rtx-4090", "a100-80gb-pcie", "t4")
MODELS = (("llama-3.1-8b", "bf16"), ("llama-2-13b", "q8_0"), ("mixtral-8x7b", "q4_k_m"), ("deepseek-v2-lite", "bf16"))
EXACT = [
    key for key in published_keys() if load_published(key).quality is None and load_published(key).existing is None
]
machines = st.tuples(st.sampled_from(GPUS), st.sampled_from(HOSTS)).map(" + ".join)
works = st.builds(
    Workload, prompt=st.sampled_from([32, 3000, 30_000]), generate=st.just(16), batch=st.sampled_from([1, 8])
)


def setup_of(system: PublishedSystem, machine: str, model: tuple[str, str]) -> Setup:
    return system.setup(load_machine(machine), load_model(*model))


@settings(deadline=None, max_examples=12)
@given(key=st.sampled_from(EXACT), machine=machines, model=st.sampled_from(MODELS), workload=works)
def test_no_exact_system_beats_the_floor(key: str, machine: str, model: tuple[str, str], workload: Workload) -> None:
    system = PublishedSystem(load_published(key))
    setup = setup_of(system, machine, model)
    try:
        found = variants(system, setup, workload, "decode")
    except (DoesNotFit, NotExpressible):
        return
    floor = decode_floor(setup, workload)
    assert all(each.evaluation.decode_s >= floor * (1 - 1e-9) for each in found)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(machine=machines, model=st.sampled_from(MODELS), batch=st.sampled_from([1, 8]))
def test_the_ideal_engine_lies_between_the_floor_and_the_exact_systems(
    machine: str, model: tuple[str, str], batch: int
) -> None:
    workload = Workload(prompt=512, generate=16, batch=batch)
    ideal = PublishedSystem(IDEAL)
    setup = setup_of(ideal, machine, model)
    try:
        best = variants(ideal, setup, workload, "decode")[0].evaluation.decode_s
    except DoesNotFit:
        return
    assert best >= decode_floor(setup, workload) * (1 - 1e-9)
    for key in ("zero-inference", "vllm-offload", "moe-infinity", "hybrimoe", "ktransformers"):
        system = PublishedSystem(load_published(key))
        try:
            other = variants(system, setup_of(system, machine, model), workload, "decode")[0].evaluation.decode_s
        except (DoesNotFit, NotExpressible):
            continue
        # The ideal engine's grid of shares is coarse, so it may stay a little above the best of a finer one.
        assert best <= other * 1.1


@pytest.mark.parametrize(
    ("system", "batch"),
    [("llama.cpp", 1), ("accelerate", 1), pytest.param("flexgen", 8, marks=pytest.mark.slow)],
)
def test_engines_run_in_full_keep_to_the_floor_too(system: str, batch: int) -> None:
    machine, model = load_machine(f"rtx-3060 + {HOSTS[0]}"), load_model("opt-6.7b", "f16")
    setup = Setup(machine, model, PublishedSystem(IDEAL).setup(machine, model).figures)
    from stowplan.planner.predict import make_setup

    workload = Workload(prompt=128, generate=16, batch=batch)
    own = make_setup(machine, model, load_system(system))
    objective: Objective = "throughput" if system == "flexgen" else "decode"
    planned = plan_for(system, Request(own, ("opt-6.7b", "f16"), workload, objective))
    assert planned.prediction.tpot_s >= decode_floor(setup, workload) * (1 - 1e-9)


def test_the_floor_is_the_arithmetic_of_three_memories() -> None:
    system = PublishedSystem(IDEAL)
    setup = setup_of(system, f"rtx-3060 + {HOSTS[0]}", ("llama-3.1-8b", "bf16"))
    workload = Workload(prompt=100, generate=0)
    from stowplan.ops import Step

    amount = step_bytes(setup, Step.decode(1, 100))
    assert amount == pytest.approx(15.0e9, rel=0.01)  # 16.06 GB of weights without the token table, and little cache
    hbm, dram, disk = (setup.figures.value(name) for name in ("gpu0.hbm", "host.dram", "disk.read"))
    whole = setup.machine.gpus[0].memory.value  # 12 GiB: full before the rest has come from host memory and disk
    seconds = max((amount - whole) / (dram + disk), amount / (hbm + dram + disk))
    assert decode_floor(setup, workload) == pytest.approx(seconds)


def test_settings_that_are_given_are_kept() -> None:
    system = PublishedSystem(load_published("hetegen"))
    setup = setup_of(system, f"rtx-4090 + {HOSTS[2]}", ("llama-2-13b", "q8_0"))
    workload = Workload(prompt=64)
    policy = placed(system, setup, workload, {"weights.gpu": 0.25})
    assert (policy.weights.gpu, policy.weights.ram) == (0.25, 0.75)
    found = variants(system, setup, workload, "decode", {"weights.cpu": 0.3, "weights.gpu": 0.25})
    assert [each.policy.weights.cpu for each in found] == [0.3]


def test_a_finer_choice_is_never_worse() -> None:
    system = PublishedSystem(load_published("hetegen"))
    setup = setup_of(system, f"rtx-3060 + {HOSTS[2]}", ("llama-2-13b", "q8_0"))
    workload = Workload(prompt=64)
    free = variants(system, setup, workload, "decode")
    fixed = variants(system, setup, workload, "decode", {"weights.cpu": 0.0})
    assert free[0].cost <= fixed[0].cost
    assert [each.cost for each in free] == sorted(each.cost for each in free)


def test_a_published_system_is_planned_like_an_engine() -> None:
    system = PublishedSystem(load_published("headinfer"))
    setup = setup_of(system, f"rtx-4090 + {HOSTS[2]}", ("llama-3.1-8b", "bf16"))
    request = Request(setup, ("llama-3.1-8b", "bf16"), Workload(prompt=50_000, generate=16))
    planned = plan_for("headinfer", request)
    assert planned.plan.system == "headinfer" and planned.prediction.bottleneck == "gpu0.h2d"
    low, high = (getattr(planned.prediction.interval["tpot_s"], end) for end in ("low", "high"))
    assert low < planned.prediction.tpot_s < high
    assert {rest.name for rest in planned.prediction.rests_on} >= {"gpu0.h2d.pinned"}
    assert all(other.cost >= planned.cost for other in planned.alternatives)


def test_a_comparison_ranks_by_the_request_and_tells_who_cannot() -> None:
    machine, model = load_machine(f"rtx-4090 + {HOSTS[0]}"), load_model("llama-2-13b", "q8_0")
    keys = ("hetegen", "zero-inference", "headinfer", "endor", "fate")
    found = compare(machine, model, ("llama-2-13b", "q8_0"), Workload(prompt=64, generate=16), systems=keys)
    assert [row.key for row in found.runs][-1] == "zero-inference"  # it streams what would fit
    assert found.runs == sorted(found.runs, key=lambda row: row.cost_s)
    assert {row.key for row in found.refused} == {"endor", "fate"}
    assert found.ideal is not None and found.floor_tokens_per_s is not None
    assert found.floor_tokens_per_s >= found.ideal.decode_tokens_per_s >= found.runs[0].decode_tokens_per_s
    for row in found.runs:
        assert sum(row.shares.values()) == pytest.approx(1.0) and row.bottleneck in row.shares
