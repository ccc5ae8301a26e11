"""The block schedule: bounds, conservation, and what switches may and may not do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import lower_bound, simulate
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.systems.base import RAM, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_execution import FlexgenRun, Placement
from stowplan.systems.flexgen_memory import FlexgenMemory
from stowplan.systems.flexgen_policy import (
    COMPRESSED,
    GPU,
    FlexgenSettings,
    cache_shares,
    edge_groups,
    homes,
    layer_groups,
)

MACHINE = load_machine("t4 + xeon-skylake-cloud-16c + ddr4-2666x6:208GiB + samsung-990-pro:4TB")
SETUP = Setup(MACHINE, load_model("opt-1.3b", "f16"), figures_for(MACHINE, "flexgen"))
SYSTEM = Flexgen()


def _runs(changes: dict[str, object]) -> tuple[FlexgenRun, Placement]:
    chosen = FlexgenSettings.model_validate(changes)
    return FlexgenRun(SETUP, Workload(prompt=64, generate=16, batch=chosen.batch), chosen), Placement.of(chosen)


_SETTINGS = st.fixed_dictionaries(
    {
        "percent": st.tuples(
            st.sampled_from([(100, 0), (20, 80), (0, 100), (30, 30), (0, 0)]),
            st.sampled_from([(100, 0), (50, 50), (0, 100), (25, 25), (0, 0)]),
            st.sampled_from([(100, 0), (0, 100), (0, 0)]),
        ).map(lambda pairs: tuple(value for pair in pairs for value in pair)),
        "gpu_batch_size": st.sampled_from([1, 4, 20]),
        "num_gpu_batches": st.sampled_from([1, 2, 3]),
        "cpu_cache_compute": st.booleans(),
        "compress_weight": st.booleans(),
        "sep_layer": st.booleans(),
        "pin_weight": st.booleans(),
    }
)


@given(changes=_SETTINGS, overlap=st.booleans())
@settings(deadline=None, max_examples=25)
def test_closed_form_is_below_the_simulation(changes: dict[str, object], overlap: bool) -> None:
    run, placement = _runs(changes | {"overlap": overlap})
    for step in (run.decode_step(80), run.prefill_step):
        simulated = run.price(step, placement)
        assert run.bound(step, placement) <= simulated.seconds * (1 + 1e-9)
        assert sum(simulated.shares.values()) == pytest.approx(simulated.seconds)


@given(changes=_SETTINGS)
@settings(deadline=None, max_examples=6)
def test_step_is_the_sum_of_its_iterations(changes: dict[str, object]) -> None:
    run, placement = _runs(changes)
    graph = run.graph(run.decode_step(80), placement)
    assert simulate(graph).makespan == pytest.approx(run.price(run.decode_step(80), placement).seconds)
    assert lower_bound(graph) <= simulate(graph).makespan * (1 + 1e-9)


@given(changes=_SETTINGS)
@settings(deadline=None, max_examples=25)
def test_overlap_never_hurts(changes: dict[str, object]) -> None:
    (beside, placement), (after, _) = _runs(changes), _runs(changes | {"overlap": False})
    for step in (beside.decode_step(80), beside.prefill_step):
        assert beside.price(step, placement).seconds <= after.price(step, placement).seconds * (1 + 1e-9)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_bytes_to_the_gpu_are_the_shares_of_the_bytes(compress: bool, overlap: bool) -> None:
    run, placement = _runs(
        {
            "percent": (20, 80, 25, 75, 0, 100),
            "gpu_batch_size": 4,
            "num_gpu_batches": 3,
            "compress_weight": compress,
            "overlap": overlap,
        }
    )
    delivered = simulate(run.graph(run.decode_step(99), placement)).delivered
    model, weights = SETUP.model, 0.0
    for group in (*edge_groups(model), *(g for layer in model.layers for g in layer_groups(layer))):
        for piece, home in zip(group.pieces, homes(group, 20, 80), strict=True):
            if home == RAM:
                weights += piece.elements * (COMPRESSED if compress and piece.matrix else 2)
    token = 4.0 * model.hidden * len(model.layers)  # keys and values in fp16
    cache = 0.75 * 12 * 100 * token
    units = 2 * len(model.layers) + 2
    hidden = 12 * 2.0 * model.hidden * units
    assert delivered["gpu0.h2d"] == pytest.approx(weights + cache + hidden)
    assert delivered["gpu0.d2h"] == pytest.approx(0.75 * 12 * token + hidden)


def test_everything_on_the_gpu_moves_nothing() -> None:
    run, placement = _runs({"percent": (100, 0, 100, 0, 100, 0)})
    assert set(simulate(run.graph(run.decode_step(80), placement)).delivered) == {"gpu0.compute", "gpu0.hbm"}


def test_cpu_attention_keeps_the_cache_where_it_is() -> None:
    changes: dict[str, object] = {"percent": (100, 0, 0, 100, 100, 0), "gpu_batch_size": 8}
    (copied, placement), (attended, _) = _runs(changes), _runs(changes | {"cpu_cache_compute": True})
    step = copied.decode_step(80)
    assert "gpu0.h2d" in simulate(copied.graph(step, placement)).delivered
    delivered = simulate(attended.graph(step, placement)).delivered
    assert "gpu0.h2d" not in delivered
    assert delivered["host.attention"] == pytest.approx(8 * 81 * 4.0 * SETUP.model.hidden * len(SETUP.model.layers))


@given(changes=_SETTINGS)
@settings(deadline=None, max_examples=25)
def test_weights_and_cache_are_all_somewhere(changes: dict[str, object]) -> None:
    run, placement = _runs(changes)
    parts = [use.parts for use in FlexgenMemory(run).use(placement).values()]
    weights = sum(part.get("weights", 0.0) for part in parts)
    elements = sum(g.elements for i in run.sequence for g in run.units[i].groups)
    ratio = COMPRESSED / 2 if changes["compress_weight"] else 1.0
    assert weights == pytest.approx(2.0 * elements * ratio, rel=2e-3)
    cache = 4.0 * SETUP.model.hidden * len(SETUP.model.layers) * 80 * run.settings.batch
    assert sum(part.get("cache", 0.0) for part in parts) == pytest.approx(cache)
    assert sum(cache_shares(run.settings).values()) == pytest.approx(1.0)


def test_more_context_is_never_faster() -> None:
    run, placement = _runs({"percent": (20, 80, 0, 100, 0, 100), "gpu_batch_size": 8, "cpu_cache_compute": True})
    times = [run.price(run.decode_step(context), placement).seconds for context in (16, 64, 256, 1024)]
    assert times == sorted(times)


def test_what_does_not_fit_is_said_with_sizes() -> None:
    setup = Setup(MACHINE, load_model("opt-30b", "f16"), SETUP.figures)
    plan = SYSTEM.plan(setup, Workload(), FlexgenSettings())
    with pytest.raises(DoesNotFit, match=r"gpu0 would hold .* of 15.0 GiB") as caught:
        SYSTEM.evaluate(setup, plan)
    assert caught.value.missing_bytes > 30 * 2**30


def test_disk_without_a_disk() -> None:
    machine = load_machine("t4 + xeon-skylake-cloud-16c + ddr4-2666x6:208GiB")
    setup = Setup(machine, SETUP.model, figures_for(machine, "flexgen"))
    plan = SYSTEM.plan(setup, Workload(), FlexgenSettings(percent=(0, 50, 100, 0, 100, 0)))
    with pytest.raises((NotExpressible, DoesNotFit), match="disk"):
        SYSTEM.evaluate(setup, plan)


def test_batch_must_be_a_block() -> None:
    plan = SYSTEM.plan(SETUP, Workload(), FlexgenSettings()).model_copy(update={"workload": Workload(batch=3)})
    with pytest.raises(NotExpressible, match="4 x 1 = 4"):
        SYSTEM.evaluate(SETUP, plan)


def test_paper_policy_for_opt_30b_on_a_t4() -> None:
    """FlexGen paper: 7.32 tokens/s overall, 11.52 in decode; the model is to be within a quarter."""
    setup = Setup(MACHINE, load_model("opt-30b", "f16"), SETUP.figures)
    text = (
        "python -m flexgen.flex_opt --model facebook/opt-30b --path _DUMMY_ --percent 20 80 0 100 0 100 "
        "--gpu-batch-size 48 --num-gpu-batches 3 --prompt-len 512 --gen-len 32 --cpu-cache-compute"
    )
    plan = SYSTEM.parse(text, setup)
    found = SYSTEM.evaluate(setup, plan)
    assert 144 / found.decode_s == pytest.approx(11.52, rel=0.25)
    assert 144 * 32 / (found.prefill_s + 31 * found.decode_s) == pytest.approx(7.32, rel=0.25)
    assert plan.layers[0].places["ffn_up"] == RAM
    assert plan.layers[0].places["kv"] == RAM
    mixer = plan.layers[0].places["attention"]
    assert isinstance(mixer, dict)
    assert mixer[GPU] == pytest.approx(0.25, abs=1e-3)
