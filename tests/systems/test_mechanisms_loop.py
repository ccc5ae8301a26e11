"""The loop of layers: each mechanism does what it says, its neutral value does nothing, and bytes are conserved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import lower_bound, simulate
from stowplan.engine.run import Run
from stowplan.errors import InputError, NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.models.model import Model
from stowplan.ops import Step
from stowplan.plan import Workload
from stowplan.routing.generate import UNIFORM, RoutingProfile
from stowplan.systems.base import Setup
from stowplan.systems.mechanisms.loop import Loop
from stowplan.systems.mechanisms.policy import Cache, Experts, Overheads, Policy, Weights
from stowplan.systems.mechanisms.pricing import dense_bytes, expert_bytes, layer_parts
from stowplan.systems.published.base import changed

MACHINES = (
    "rtx-4090 + ryzen-9-7950x + ddr5-5600x2:128GiB + samsung-990-pro",
    "rtx-3060 + core-i9-10900x + ddr4-2933x4:64GiB + samsung-980-pro",
    "a100-80gb-sxm + epyc-7742 + ddr4-3200x8:512GiB + samsung-pm9a3",
)
MODELS = ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v2-lite", "gemma-3-4b", "opt-6.7b")
STREAMED = Weights(gpu=0.0, ram=1.0)

_setups: dict[tuple[str, str], Setup] = {}


def setup_of(machine: str = MACHINES[0], model: str = MODELS[0]) -> Setup:
    """A model on a machine with the kernels of research code, made once."""
    if (machine, model) not in _setups:
        loaded = load_machine(machine)
        _setups[machine, model] = Setup(loaded, load_model(model, "bf16"), figures_for(loaded, "pytorch"))
    return _setups[machine, model]


def loop_of(
    policy: Policy, machine: str = MACHINES[0], model: str = MODELS[0], profile: RoutingProfile = UNIFORM, **asked: int
) -> Loop:
    return Loop(setup_of(machine, model), "pytorch", policy, Workload(**asked), profile)


def decode(policy: Policy, context: int = 4096, **more: object) -> float:
    return loop_of(policy, **more).decode(context).seconds  # type: ignore[arg-type]


def one_kind(loop: Loop, step: Step, layers: int) -> Run:
    """Some layers of the model's last class in the simulator."""
    return simulate(loop.graph(replace(loop.runs(step)[-1], count=layers), step))


weights = st.builds(
    Weights,
    gpu=st.sampled_from([0.0, 0.25, 0.6, 1.0]),
    ram=st.just(0.0),
    prefetch=st.integers(0, 2),
    pieces=st.integers(1, 4),
    pinned=st.booleans(),
    cpu=st.sampled_from([0.0, 0.5, 1.0]),
).map(lambda made: replace(made, ram=1.0 - made.gpu))
caches = st.builds(
    Cache,
    gpu=st.sampled_from([0.0, 1.0]),
    attend=st.sampled_from(["gpu", "cpu"]),
    prefetch=st.integers(0, 2),
    slices=st.sampled_from([1, 2, 4]),
    pinned=st.booleans(),
).map(lambda made: replace(made, ram=1.0 - made.gpu))
experts = st.builds(
    Experts,
    gpu=st.sampled_from([0.0, 0.3, 1.0]),
    selective=st.booleans(),
    policy=st.sampled_from(["uniform", "lru"]),
    accuracy=st.sampled_from([0.0, 0.8]),
    miss=st.sampled_from(["load", "cpu", "both"]),
).map(lambda made: replace(made, ram=1.0 - made.gpu))
policies = st.builds(Policy, weights=weights, cache=caches, experts=experts, batches=st.sampled_from([1, 2]))
places = st.tuples(st.sampled_from(MACHINES), st.sampled_from(MODELS))

# A mechanism that is off, and the parameters that may then take any value: {what is off} -> {what must not matter}.
INERT: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "nothing to copy": ({"weights.gpu": 1.0, "weights.ram": 0.0, "cache.gpu": 1.0, "cache.ram": 0.0,
                         "experts.gpu": 1.0, "experts.ram": 0.0}, {
        "weights.prefetch": 2, "weights.pieces": 4, "weights.cpu": 0.7, "weights.zero_copy": True,
        "cache.prefetch": 2, "cache.slices": 8, "cache.attend": "cpu", "cache.slots": 4, "cache.rounded": True,
        "cache.windowed": False, "experts.returned": True,
    }),
    "no selection": ({"cache.read": 1.0}, {"cache.scan": 0.5, "cache.locality": 0.9, "cache.whole_layers": 3}),
    "nothing stored smaller": ({"cache.bits": 1.0}, {"cache.residual": 128}),
    "all experts on the GPU": ({"experts.gpu": 1.0, "experts.ram": 0.0, "experts.selective": True}, {
        "experts.accuracy": 0.9, "experts.lookahead": 2, "experts.miss": "cpu", "experts.policy": "score",
        "experts.low": 0.5, "experts.low_stored": 0.25, "experts.shallow": 4, "experts.deferred": 0.5,
        "experts.returned": True,
    }),
    "all computed where it lies": ({"experts.miss": "cpu"}, {"experts.returned": True}),
    "no misses served smaller": ({"experts.low": 0.0}, {"experts.low_stored": 0.25, "experts.low_gpu": 0.5}),
    "no predictor": ({"experts.accuracy": 0.0}, {"experts.lookahead": 2}),
    "one GPU batch of all": ({"batches": 1}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", INERT)
@settings(deadline=None, max_examples=4)
@given(policy=policies, place=places, batch=st.sampled_from([1, 4]))
def test_a_neutral_value_gives_the_baseline_back_exactly(
    name: str, policy: Policy, place: tuple[str, str], batch: int
) -> None:
    off, others = INERT[name]
    base = changed(policy, off)
    machine, model = place
    one, two = (
        loop_of(each, machine, model, prompt=512, generate=8, batch=batch) for each in (base, changed(base, others))
    )
    for first, second in ((one.decode(700), two.decode(700)), (one.prefill(), two.prefill())):
        assert second == first


@settings(deadline=None, max_examples=10)
@given(policy=policies, place=places, context=st.sampled_from([64, 3000, 60000]))
def test_a_step_is_no_faster_than_its_busiest_resource(policy: Policy, place: tuple[str, str], context: int) -> None:
    loop = loop_of(policy, *place, batch=4)
    step = loop.decode_step(context)
    run = one_kind(loop, step, 6)
    assert run.makespan >= lower_bound(run.graph) * (1 - 1e-9)
    more = one_kind(loop, step, 12)
    for name, amount in more.delivered.items():
        busiest = amount - run.delivered.get(name, 0.0)
        each = loop._steady(loop.runs(step)[-1], step).seconds
        assert 6 * each >= busiest / more.graph.rates[name] * (1 - 1e-6)


@settings(deadline=None, max_examples=8)
@given(policy=policies, place=places, context=st.sampled_from([64, 20_000]))
def test_one_more_layer_times_all_is_the_whole_pass(policy: Policy, place: tuple[str, str], context: int) -> None:
    """The steady state against every layer simulated: only the first layers' copies, which nothing hides, differ."""
    loop = loop_of(policy, *place, batch=4)
    step = loop.decode_step(context)
    whole = simulate(loop.whole_graph(step)).makespan
    steady = loop._pass(step).seconds
    filling = sum(loop._steady(alike, step).seconds for alike in loop.runs(step)) * (loop.fill + 1)
    assert steady * (1 - 0.02) <= whole <= steady + filling


@pytest.mark.parametrize("model", ["llama-3.1-8b", "opt-6.7b"])
@pytest.mark.parametrize("machine", MACHINES)
def test_streaming_takes_the_larger_of_copy_and_compute_with_prefetch_and_the_sum_without(
    machine: str, model: str
) -> None:
    step = Step.decode(64, 100)
    alone = loop_of(Policy(), machine, model, batch=64)
    sync, ahead = (
        loop_of(Policy(weights=replace(STREAMED, prefetch=depth)), machine, model, batch=64) for depth in (0, 1)
    )
    compute = alone._steady(alone.runs(step)[-1], step).seconds
    layer = alone.runs(step)[-1].layer
    copy = dense_bytes(layer) / alone.pricing.rates["gpu0.h2d"]
    assert sync._steady(sync.runs(step)[-1], step).seconds == pytest.approx(compute + copy, rel=0.02)
    assert ahead._steady(ahead.runs(step)[-1], step).seconds == pytest.approx(max(compute, copy), rel=0.02)


@settings(deadline=None, max_examples=10)
@given(policy=policies, place=places)
def test_looking_further_ahead_is_never_slower(policy: Policy, place: tuple[str, str]) -> None:
    shallow = changed(policy, {"weights.prefetch": 0, "cache.prefetch": 0})
    deep = changed(policy, {"weights.prefetch": 2, "cache.prefetch": 2})
    one, two = (loop_of(each, *place, batch=4).decode(5000).seconds for each in (shallow, deep))
    assert two <= one * (1 + 1e-6)


def test_bytes_over_the_link_are_those_that_the_policy_moves() -> None:
    step, context = Step.decode(2, 8000), 8000
    policy = Policy(weights=Weights(gpu=0.25, ram=0.75, prefetch=1), cache=Cache(gpu=0.0, ram=1.0, prefetch=1))
    loop = loop_of(policy, batch=2)
    layer = loop.runs(step)[-1].layer
    run = one_kind(loop, step, 8)
    cache = layer_parts(layer, step).attention
    per_layer = 0.75 * dense_bytes(layer) + cache.kv_read - cache.kv_write
    assert run.delivered["gpu0.h2d"] == pytest.approx(8 * per_layer)
    assert run.delivered["gpu0.d2h"] == pytest.approx(8 * cache.kv_write)
    assert context * 2 * 2048 * 2 == pytest.approx(cache.kv_read, rel=1e-3)  # 8 heads of 128 keys and values, fp16


@pytest.mark.parametrize(
    ("settings_", "factor"),
    [
        ({"cache.bits": 0.25}, 0.25),
        ({"cache.kept": 0.2}, 0.2),
        ({"cache.read": 0.1}, 0.1),
        ({"cache.read": 0.1, "cache.locality": 0.5}, 0.05),
        ({"cache.recompute": 1.0}, 2.0),  # inputs of 4096 against 2 x 1024 cached elements
        ({"cache.slices": 4}, 1.0),
    ],
)
def test_the_cache_moves_less_as_each_mechanism_says(settings_: dict[str, object], factor: float) -> None:
    base = Policy(cache=Cache(gpu=0.0, ram=1.0))
    step = Step.decode(1, 50_000)
    one, two = (one_kind(loop_of(each), step, 4).delivered["gpu0.h2d"] for each in (base, changed(base, settings_)))
    assert two / one == pytest.approx(factor, rel=1e-3)


def test_attention_where_the_cache_lies_moves_no_cache() -> None:
    policy = Policy(cache=Cache(gpu=0.0, ram=1.0, attend="cpu"))
    step = Step.decode(1, 50_000)
    run = one_kind(loop_of(policy), step, 4)
    assert run.delivered["gpu0.h2d"] < 1e6
    assert run.delivered["host.dram"] >= 4 * layer_parts(loop_of(policy).runs(step)[-1].layer, step).attention.kv_read


def with_figures(policy: Policy, setup: Setup, **numbers: float) -> Loop:
    """A loop with figures of a system's own; an underscore stands for the second point of a name."""
    own = {name.replace("__", "."): replace(setup.figures["host.dram"], value=value) for name, value in numbers.items()}
    return Loop(
        Setup(setup.machine, setup.model, type(setup.figures)({**setup.figures, **own})), "pytorch", policy, Workload()
    )


def test_attention_on_the_cpu_at_a_rate_of_its_own_passes_over_copies_for_every_query_head() -> None:
    policy, step = Policy(cache=Cache(gpu=0.0, ram=1.0, attend="cpu")), Step.decode(16, 50_000)
    read = layer_parts(loop_of(policy).runs(step)[-1].layer, step).attention.kv_read
    plain, copied = (
        one_kind(with_figures(policy, setup_of(), pytorch__cpu_attention_rate=1e9, **more), step, 4).makespan / 4
        for more in ({}, {"pytorch__cpu_attention_copies": 2.0})
    )
    assert plain == pytest.approx(read / 1e9, rel=0.02)
    assert copied == pytest.approx(2 * 4 * read / 1e9, rel=0.02)  # four query heads to one of keys
    alone = setup_of(model="opt-6.7b")
    first, second = (
        one_kind(with_figures(policy, alone, pytorch__cpu_attention_rate=1e9, **more), step, 4).makespan
        for more in ({}, {"pytorch__cpu_attention_copies": 2.0})
    )
    assert first == second  # every query head has keys of its own


def test_cores_of_several_sockets_count_as_the_system_says() -> None:
    machine = load_machine("rtx-4090 + 2x xeon-gold-6454s + ddr5-4800x16:512GiB")
    setup = Setup(machine, load_model("llama-3.1-8b", "bf16"), figures_for(machine, "pytorch"))
    assert with_figures(Policy(), setup).pricing.rates["host.cores"] == machine.cores == 64
    assert with_figures(Policy(), setup, pytorch__cpu__sockets_cores=1.4).pricing.rates["host.cores"] == 1.4 * 32


def test_pageable_weights_come_at_the_rate_of_pageable_copies() -> None:
    step = Step.decode(1, 100)
    pinned, pageable = (loop_of(Policy(weights=replace(STREAMED, pinned=each))) for each in (True, False))
    slower = pinned.setup.figures.value("gpu0.h2d.pinned") / pinned.setup.figures.value("gpu0.h2d.pageable")
    one, two = (each._steady(each.runs(step)[-1], step).seconds for each in (pinned, pageable))
    assert two / one == pytest.approx(slower, rel=0.05) and slower > 1.5


def test_a_windowed_layer_may_keep_and_move_everything() -> None:
    base, step = Policy(cache=Cache(gpu=0.0, ram=1.0)), Step.decode(1, 50_000)
    moved = []
    for policy in (base, changed(base, {"cache.windowed": False})):
        loop = loop_of(policy, model="gemma-3-4b")
        windowed = next(each for each in loop.runs(step) if getattr(each.layer.mixer, "window", None))
        moved.append(simulate(loop.graph(replace(windowed, count=4), step)).delivered["gpu0.h2d"])
    assert moved[1] / moved[0] == pytest.approx(50_000 / 1_024, rel=0.05)


def test_experts_that_come_push_others_out() -> None:
    base = Policy(experts=Experts(gpu=0.0, ram=1.0))
    loop, step = loop_of(changed(base, {"experts.returned": True}), model="mixtral-8x7b"), Step.decode(1, 100)
    run = one_kind(loop, step, 4)
    assert run.delivered["gpu0.d2h"] == pytest.approx(run.delivered["gpu0.h2d"], rel=0.01)
    plain = loop_of(base, model="mixtral-8x7b")
    one, two = (each._steady(each.runs(step)[-1], step).seconds for each in (plain, loop))
    assert two > 1.8 * one


def test_computational_storage_needs_its_rate_and_is_limited_by_it() -> None:
    policy = Policy(cache=Cache(gpu=0.0, ram=0.0, attend="storage"))
    assert "storage.attention" not in loop_of(policy).pricing.rates
    step = Step.decode(1, 50_000)
    loop = with_figures(policy, setup_of(), storage__attention=1e9)
    cache = layer_parts(loop.runs(step)[-1].layer, step).attention
    seconds = loop._steady(loop.runs(step)[-1], step).seconds
    assert seconds == pytest.approx((cache.kv_read - cache.kv_write) / 1e9, rel=0.1)


def moved_experts(settings_: dict[str, object], model: str = "mixtral-8x7b") -> float:
    """Bytes of experts that cross the link in one layer, in units of one expert."""
    base = changed(Policy(experts=Experts(gpu=0.0, ram=1.0)), settings_)
    loop = loop_of(base, model=model)
    step = Step.decode(1, 100)
    layer = loop.runs(step)[-1].layer
    assert layer.experts is not None
    return one_kind(loop, step, 4).delivered.get("gpu0.h2d", 0.0) / 4 / (expert_bytes(layer) / layer.experts.total)


def test_experts_move_as_cache_predictor_and_format_say() -> None:
    assert moved_experts({}) == pytest.approx(2.0)
    assert moved_experts({"experts.gpu": 0.5, "experts.ram": 0.5}) == pytest.approx(1.0)
    assert moved_experts({"experts.accuracy": 0.75}) == pytest.approx(2.0 * 1.25)  # the wrong quarter comes in vain
    assert moved_experts({"experts.low": 0.5, "experts.low_stored": 0.25}) == pytest.approx(2.0 * 0.625)
    assert moved_experts({"experts.selective": False}) == pytest.approx(8.0)
    assert moved_experts({"experts.miss": "cpu"}) < 0.01
    assert 0.0 < moved_experts({"experts.miss": "both"}) < 2.0


@pytest.mark.parametrize("machine", MACHINES)
def test_dividing_the_misses_is_no_slower_than_either_side_alone(machine: str) -> None:
    base = Policy(experts=Experts(gpu=0.25, ram=0.75))
    times = {
        miss: decode(changed(base, {"experts.miss": miss}), machine=machine, model="mixtral-8x7b")
        for miss in ("load", "cpu", "both")
    }
    assert times["both"] <= 1.02 * min(times["load"], times["cpu"])


def test_a_perfect_predictor_hides_what_fits_beside_the_compute() -> None:
    base = Policy(experts=Experts(gpu=0.9, ram=0.1), overheads=Overheads(layer=5e-3))
    resident = decode(Policy(overheads=Overheads(layer=5e-3)), model="mixtral-8x7b")
    late = decode(base, model="mixtral-8x7b")
    known = decode(changed(base, {"experts.accuracy": 1.0}), model="mixtral-8x7b")
    assert resident * (1 - 1e-9) <= known < late
    assert known == pytest.approx(resident, rel=0.02)


def test_first_layers_may_hold_all_experts_or_read_all_of_the_cache() -> None:
    shallow = loop_of(Policy(experts=Experts(gpu=0.5, ram=0.5, shallow=4)), model="mixtral-8x7b")
    runs = shallow.runs(Step.decode(1, 10))
    assert [(each.count, round(each.hits, 3)) for each in runs] == [(4, 1.0), (28, 0.429)]
    whole = loop_of(Policy(cache=Cache(gpu=0.0, ram=1.0, read=0.1, whole_layers=2)))
    assert [each.count for each in whole.runs(Step.decode(1, 10))] == [2, 30]


def test_a_block_schedule_loads_weights_once_for_all_its_batches() -> None:
    step = Step.decode(8, 100)
    one, four = (
        one_kind(loop_of(Policy(weights=STREAMED, batches=n), batch=8 * n), step, 4).delivered["gpu0.h2d"]
        for n in (1, 4)
    )
    assert four == pytest.approx(one)


def test_one_thread_makes_cpu_and_gpu_take_turns() -> None:
    policy = Policy(cache=Cache(gpu=0.0, ram=1.0, attend="cpu"), batches=4)
    step = 20_000
    both = loop_of(policy, batch=16).decode(step).seconds
    turns = loop_of(replace(policy, one_thread=True), batch=16).decode(step).seconds
    assert turns > both


def test_chunks_of_a_prompt_sum_to_about_the_whole() -> None:
    whole = loop_of(Policy(), prompt=40_000).prefill().seconds
    parts = loop_of(Policy(chunk=4000), prompt=40_000).prefill().seconds
    assert parts == pytest.approx(whole, rel=0.1)


def test_sampled_chunks_stand_for_all_of_them() -> None:
    loop = loop_of(Policy(cache=Cache(gpu=0.0, ram=1.0, prefetch=1), chunk=1000), prompt=37_000)
    steps = loop.prefill_steps()
    assert sum(times * step.tokens for step, times in steps) == pytest.approx(37_000)
    exact = sum(loop._pass(Step(1000, ((past, 1),), 0)).seconds for past in range(0, 37_000, 1000))
    assert loop.prefill().seconds == pytest.approx(exact, rel=0.02)


def test_what_no_machine_or_engine_has_is_refused() -> None:
    with pytest.raises(NotExpressible, match="computes on a GPU"):
        Loop(_on("ryzen-9-7950x + ddr5-5600x2:64GiB"), "pytorch", Policy(), Workload())
    with pytest.raises(NotExpressible, match="which are one"):
        Loop(_on("mac-mini-m4-pro-24"), "pytorch", Policy(), Workload())
    disk = Policy(weights=Weights(gpu=0.0, ram=0.0))
    with pytest.raises(NotExpressible, match="has none"):
        Loop(_on("rtx-4090 + ryzen-9-7950x + ddr5-5600x2:64GiB"), "pytorch", disk, Workload()).decode(10)
    with pytest.raises(InputError, match="share from 0 to 1"):
        Weights(gpu=0.7, ram=0.5)
    with pytest.raises(InputError, match="no field"):
        changed(Policy(), {"weights.magic": 1})


def _on(machine: str) -> Setup:
    loaded, model = load_machine(machine), setup_of().model
    assert isinstance(model, Model)
    return Setup(loaded, model, figures_for(loaded, "pytorch"))
