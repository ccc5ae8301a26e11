"""Moves between FlexGen policies: they lead somewhere that FlexGen takes, uphill, and not on for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.flexgen import plan_flexgen, polish
from stowplan.planner.flexgen_polish import _moves, polished
from stowplan.systems.base import Setup
from stowplan.systems.flexgen_policy import FlexgenSettings, checked

SPLITS = sorted((gpu, high - gpu) for gpu in (0, 12, 50, 100) for high in (0, 12, 50, 75, 100) if gpu <= high)


@given(
    split=st.sampled_from(SPLITS),
    cache=st.sampled_from([(100, 0), (0, 100), (30, 50), (0, 0), (1, 99)]),
    hidden=st.sampled_from([(100, 0), (0, 100), (0, 0)]),
    cpu=st.booleans(),
)
def test_moves_are_policies_one_step_away(
    split: tuple[int, int], cache: tuple[int, int], hidden: tuple[int, int], cpu: bool
) -> None:
    start = FlexgenSettings(percent=(*split, *cache, *hidden), cpu_cache_compute=cpu and cache != (100, 0))
    for percent in _moves(start, SPLITS):
        checked(start.model_copy(update={"percent": percent}))
        assert percent != start.percent and percent[:2] in SPLITS
        parts = [percent[at : at + 2] != start.percent[at : at + 2] for at in (0, 2, 4)]
        assert sum(parts) == 1


def test_the_search_climbs_to_a_policy_that_no_move_betters() -> None:
    def speed(settings: FlexgenSettings) -> float | None:
        gpu, host, cache, *_ = settings.percent
        return None if gpu > 50 else gpu + host / 2 + (100 - abs(cache - 40)) / 10

    start = FlexgenSettings(percent=(0, 50, 60, 40, 100, 0))
    found = polished(start, SPLITS, speed)
    best = speed(found)
    assert best is not None and found.percent[:2] == (50, 50) and abs(found.percent[2] - 40) < 4
    assert polished(FlexgenSettings(percent=(100, 0, 0, 0, 0, 0)), SPLITS, speed).percent[:2] == (100, 0)


def test_a_policy_is_never_worse_for_the_search() -> None:
    machine = load_machine("t4 + xeon-skylake-cloud-16c + ddr4-2666x6:48GiB + samsung-990-pro:4TB")
    setup = Setup(machine, load_model("opt-13b", "f16"), figures_for(machine, "flexgen"))
    workload = Workload(prompt=256, generate=16)
    for policy in plan_flexgen(setup, workload, gpu_batch_sizes=(32,), num_gpu_batches=(2,)):
        better = polish(setup, workload, policy, model="opt-13b")
        assert better.tokens_per_s >= policy.tokens_per_s
        again = polish(setup, workload, policy, model="opt-13b")
        assert again.plan == better.plan
