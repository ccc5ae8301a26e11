"""What the pictures show adds up: boxes to bytes, lanes to time, dots under their roofs, curves to evaluations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine.graph import GraphBuilder
from stowplan.engine.run import Run
from stowplan.engine.simulate import simulate
from stowplan.planner.result import Planned
from stowplan.report import words
from stowplan.report.curve import curve_of
from stowplan.report.families import Family, family_of_task, layer_of, operator_of, short_name
from stowplan.report.grounds import quantity
from stowplan.report.lanes import lanes_of, typical_layer
from stowplan.report.markup import Markup, tag
from stowplan.report.operators import groups_of, roofs_of, steps
from stowplan.report.stowage import holds
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.work import Work

Solved = tuple[Setup, Planned]


@pytest.fixture(scope="module")
def decode(case: Solved) -> Run:
    setup, found = case
    return simulate(load_system(found.plan.system).decode_graph(setup, found.plan))


def test_boxes_add_up_to_what_every_tier_holds(case: Solved) -> None:
    setup, found = case
    shown = holds(setup, found.plan, found.prediction)
    assert {hold.tier for hold in shown} == {t for t, use in found.prediction.memory_bytes.items() if use.used}
    for hold in shown:
        assert sum(box.bytes for box in hold.boxes) == pytest.approx(hold.use.used, rel=1e-9)
        assert all(box.bytes > 0 for box in hold.boxes)


def test_weights_are_the_models_own(case: Solved) -> None:
    setup, found = case
    if found.plan.system != "llama.cpp":
        pytest.skip("other engines store weights in their own way")
    families = {Family.ATTENTION, Family.FFN, Family.EXPERTS, Family.SHARED, Family.OUTPUT}
    boxes = [box for hold in holds(setup, found.plan, found.prediction) for box in hold.boxes]
    total = sum(box.bytes for box in boxes if box.family in families)
    assert total == pytest.approx(setup.model.weight_bytes, rel=1e-9)


def test_lanes_cover_the_step(case: Solved, decode: Run) -> None:
    setup, _ = case
    lanes = lanes_of(decode, len(setup.gpus))
    spans = sorted((bar.start, bar.end) for lane in lanes for bar in lane.bars)
    assert spans[0][0] == 0.0
    assert max(end for _, end in spans) == pytest.approx(decode.makespan)
    reached = 0.0
    for start, end in spans:
        assert start <= reached + 1e-9 * decode.makespan, "nobody works here"
        reached = max(reached, end)
    for lane in lanes:
        assert all(a.end <= b.start + 1e-12 for a, b in itertools.pairwise(lane.bars))
        assert len(lane.bars) < 2500


def test_lane_shares_are_the_tasks_own(case: Solved, decode: Run) -> None:
    setup, _ = case
    busy = sum(lane.busy for lane in lanes_of(decode, len(setup.gpus)))
    assert busy == pytest.approx(sum(end - start for start, end in zip(decode.start, decode.end, strict=True)))


def test_a_layer_close_up_is_all_of_its_tasks(case: Solved, decode: Run) -> None:
    setup, _ = case
    typical = typical_layer(decode)
    assert typical is not None
    mine = [i for i, task in enumerate(decode.graph.tasks) if layer_of(task.name) == typical.layer]
    mine = [i for i in mine if decode.end[i] > decode.start[i]]
    assert typical.start == min(decode.start[i] for i in mine)
    assert typical.end == max(decode.end[i] for i in mine)
    assert 1 <= typical.alike <= 4 * len(setup.model.layers)
    lanes = lanes_of(decode, len(setup.gpus), (typical.start, typical.end))
    assert all(typical.start <= bar.start <= bar.end <= typical.end for lane in lanes for bar in lane.bars)


def test_operators_stay_under_their_roofs(case: Solved, decode: Run) -> None:
    setup, found = case
    system = load_system(found.plan.system)
    known = steps(system, setup, found.plan)
    if known is None:
        assert found.plan.system == "flexgen"
        return
    groups = groups_of(setup, decode, known[0], "decode")
    roofs = {roof.device: roof for roof in roofs_of(setup, {group.device for group in groups})}
    for group in groups:
        roof = roofs[group.device]
        assert group.rate <= 1.0001 * min(roof.peak, roof.bandwidth * group.intensity), group.title
    assert sum(group.seconds for group in groups) <= decode.makespan * (1 + 1e-9)


def test_operators_do_the_models_arithmetic(solved: Callable[[str], Solved]) -> None:
    setup, found = solved("laptop")
    system = load_system("llama.cpp")
    known = steps(system, setup, found.plan)
    assert known is not None
    run = simulate(system.decode_graph(setup, found.plan))
    flops = sum(g.flops for g in groups_of(setup, run, known[0], "decode") if g.family is not Family.CACHE)
    vectors = sum(tensor.elements for tensor in setup.model.tensors if tensor.columns == 1)
    assert flops == pytest.approx(2 * (setup.model.active_parameters - vectors), rel=1e-9)


def test_curve_is_the_systems_evaluation(case: Solved) -> None:
    setup, found = case
    curve = curve_of(load_system(found.plan.system), setup, found.plan)
    own = [point for point in curve.points if point.batch == found.plan.workload.batch]
    assert len(own) == 1
    assert own[0].tokens_per_s == pytest.approx(found.prediction.decode_tokens_per_s)
    assert own[0].tpot_s == pytest.approx(found.prediction.tpot_s)
    assert [p.batch for p in curve.points] == sorted(p.batch for p in curve.points)


def _run(lengths: list[tuple[str, float]]) -> Run:
    builder = GraphBuilder({"host.cores": 1.0})
    last: tuple[int, ...] = ()
    for stream, length in lengths:
        last = (builder.add(f"blk.{len(last)}.attn_q", Work({"host.cores": length}), stream=stream, after=last),)
    return simulate(builder.build())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["gpu0", "host"]), st.floats(1e-6, 10.0)), min_size=1, max_size=40),
    st.floats(5.0, 2000.0),
)
def test_merged_bars_keep_every_edge_of_the_step(lengths: list[tuple[str, float]], width: float) -> None:
    run = _run(lengths)
    bars = [bar for lane in lanes_of(run, 1, width=width) for bar in lane.bars]
    assert min(bar.start for bar in bars) == 0.0
    assert max(bar.end for bar in bars) == pytest.approx(run.makespan)
    covered = sum(bar.end - bar.start for bar in bars)
    assert covered >= run.makespan * (1 - 1e-9)
    assert covered <= run.makespan + 0.5 * len(lengths) * run.makespan / width + 1e-9


def test_fewer_pixels_give_fewer_bars() -> None:
    run = _run([("gpu0", 1e-3), ("host", 5e-4)] * 200)
    wide, narrow = (sum(len(lane.bars) for lane in lanes_of(run, 1, width=w)) for w in (4000.0, 100.0))
    assert wide == 400
    assert narrow < 30


@pytest.mark.parametrize(
    ("name", "kind", "family", "layer", "short"),
    [
        ("blk.12.attn_q", "compute", Family.ATTENTION, 12, "Q"),
        ("blk.12.attention", "compute", Family.CACHE, 12, "attention"),
        ("blk.3.ffn_gate_inp", "compute", Family.ATTENTION, 3, "router"),
        ("blk.3.ffn_up_exps", "compute", Family.EXPERTS, 3, "experts up"),
        ("blk.3.ffn_up_exps weights", "copy", Family.COPY, 3, "copy weights: experts up"),
        ("blk.3.ffn_up_exps pages", "disk", Family.DISK, 3, "read pages: experts up"),
        ("layer 7 ffn_down", "compute", Family.FFN, 7, "down"),
        ("4.1 compute", "compute", Family.OTHER, 4, "compute"),
        ("output", "compute", Family.OUTPUT, None, "output"),
        ("sample", "compute", Family.OUTPUT, None, "sample"),
    ],
)
def test_tasks_are_recognised(name: str, kind: str, family: Family, layer: int | None, short: str) -> None:
    assert family_of_task(name, kind) is family
    assert layer_of(name) == layer
    assert short_name(name) == short
    assert " " not in operator_of(name)


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("host.dram", 72e9, "72.0 GB/s"),
        ("gpu0.h2d.pinned", 23.9e9, "23.9 GB/s"),
        ("gpu0.peak.fp16", 165e12, "165 TFLOP/s"),
        ("llama.cpp.gpu.copy_latency", 6e-5, "60.0 µs"),
        ("llama.cpp.cpu.dram_share", 0.77, "77 %"),
        ("llama.cpp.gpu.gemm_quantised_energy", 3e-12, "3 pJ/FLOP"),
        ("llama.cpp.gpu.gemv_per_unit_clock", 6.5, "6.5 B per unit and cycle"),
        ("llama.cpp.gpu.attention_per_unit_clock", 400.0, "400 FLOP per unit and cycle"),
        ("llama.cpp.cpu.gemv.k", 2.5, "2.5 weights per core and cycle"),
        ("gpu0.power", 450.0, "450 W"),
        ("host.clock", 3.9e9, "3.90 GHz"),
        ("llama.cpp.gpu.kernels.matmul", 2.0, "2"),
    ],
)
def test_figures_carry_their_units(name: str, value: float, written: str) -> None:
    assert quantity(name, value) == written


@given(st.floats(1e-8, 1e5))
@settings(deadline=None, max_examples=100)
def test_durations_have_three_digits(value: float) -> None:
    text = words.seconds(value)
    number, unit = text.split(" ")
    back = float(number.replace(",", "")) * {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[unit]
    assert math.isclose(back, value, rel_tol=0.06)
    assert not text.startswith("1,000 m")


def test_ranges_are_contracted() -> None:
    assert words.ranges([5, 0, 1, 2, 7, 8]) == "0–2, 5, 7–8"


def test_markup_escapes_what_it_did_not_make() -> None:
    assert tag("b", "<i>", title='"') == '<b title="&quot;">&lt;i&gt;</b>'
    assert tag("b", Markup("<i></i>")) == "<b><i></i></b>"
