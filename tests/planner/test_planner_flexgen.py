"""The FlexGen planner against brute force, and its bounds."""

from __future__ import annotations

import itertools

import pytest

from stowplan.errors import DoesNotFit
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.flexgen import _Drafts, plan_flexgen, weight_splits
from stowplan.planner.flexgen_programme import Block, solve
from stowplan.systems.base import DISK, RAM, Setup
from stowplan.systems.flexgen_execution import Placement
from stowplan.systems.flexgen_policy import GPU, FlexgenSettings, cache_shares, hidden_tier, homes, layer_groups

_T4 = "t4 + xeon-skylake-cloud-16c + ddr4-2666x6:{ram}GiB"


def _setup(model: str, ram: int = 208, *, disk: bool = False) -> Setup:
    machine = load_machine(_T4.format(ram=ram) + (" + samsung-990-pro:4TB" if disk else ""))
    return Setup(machine, load_model(model, "f16"), figures_for(machine, "flexgen"))


def _brute_force(block: Block, step: int) -> float:
    tiers = list(block.cache_memory)
    shares = [
        dict(zip(tiers, counts, strict=True))
        for counts in itertools.product(range(0, 101, step), repeat=len(tiers))
        if sum(counts) == 100 and (not block.settings.cpu_cache_compute or counts[tiers.index(GPU)] <= 99)
    ]
    best = float("inf")
    for split, cache, hidden in itertools.product(range(len(block.splits)), shares, block.hidden_memory):
        part = {tier: count / 100 for tier, count in cache.items()}
        if block.fits(split, part, hidden):
            best = min(best, block.seconds(split, part, hidden))
    return best


@pytest.mark.parametrize("cpu_attention", [False, True])
@pytest.mark.parametrize("shape", [(24, 2), (48, 1)])
def test_programme_finds_what_brute_force_finds(shape: tuple[int, int], cpu_attention: bool) -> None:
    drafts = _Drafts(_setup("opt-13b", 64), Workload(prompt=256, generate=16), FlexgenSettings())
    block = drafts.block(*shape, cpu_attention)
    assert block is not None
    solved = solve(block)
    assert solved is not None
    found, proof = solved
    best = _brute_force(block, 1)
    assert proof.objective == pytest.approx(best, rel=2e-3)
    assert proof.bound <= best * (1 + 1e-6)
    assert block.floor <= best * (1 + 1e-6)
    assert proof.gap <= 1e-3 + 1e-9
    split = block.splits.index(found.percent[:2])
    cache = {GPU: found.percent[2] / 100, RAM: found.percent[3] / 100}
    assert block.fits(split, cache, hidden_tier(found))
    assert block.seconds(split, cache, hidden_tier(found)) == pytest.approx(proof.objective)


def test_affine_lanes_are_the_lanes_of_the_run() -> None:
    """At a placement of whole sequences the programme's closed form is the run's."""
    setup, workload = _setup("opt-1.3b", disk=True), Workload(prompt=64, generate=16)
    drafts = _Drafts(setup, workload, FlexgenSettings())
    block = drafts.block(10, 3, cpu_attention=True)
    assert block is not None
    for percent in ((30, 70, 20, 50, 0, 100), (0, 50, 0, 100, 100, 0), (100, 0, 50, 50, 0, 0)):
        chosen = block.settings.model_copy(update={"percent": percent})
        run, placement = drafts._run.reshaped(chosen), Placement.of(chosen)
        expected = 15 * run.bound(run.decode_step(workload.decode_context), placement)
        expected += run.bound(run.prefill_step, placement)
        slots = [slot for slot in run.slots() if slot.first]
        split = next(
            n
            for n, pair in enumerate(block.splits)
            if all(
                run.weight_lanes(slot, pair) == pytest.approx(run.weight_lanes(slot, percent[:2]), rel=1e-3)
                for slot in slots
            )
        )
        shares = cache_shares(chosen)
        placed = {tier: shares.get(tier, 0.0) for tier in (GPU, RAM, DISK)}
        assert block.seconds(split, placed, hidden_tier(chosen)) == pytest.approx(expected, rel=2e-3)


def test_pruned_search_finds_what_the_whole_grid_holds() -> None:
    setup, workload = _setup("opt-13b", 64), Workload(prompt=256, generate=16)
    sizes, batches = (8, 32, 64), (1, 2, 4)
    found = plan_flexgen(setup, workload, gpu_batch_sizes=sizes, num_gpu_batches=batches, keep=1)
    drafts = _Drafts(setup, workload, FlexgenSettings())
    per_token = []
    for size, count, cpu in itertools.product(sizes, batches, (False, True)):
        block = drafts.block(size, count, cpu)
        solved = None if block is None else solve(block)
        if block is not None and solved is not None:
            per_token.append(solved[1].objective / block.settings.batch)
    objective = found[0].solver.objective / found[0].plan.workload.batch
    assert objective == pytest.approx(min(per_token), rel=1e-3)


def test_closed_form_is_below_the_simulation_of_the_plan() -> None:
    workload = Workload(prompt=128, generate=16)
    for policy in plan_flexgen(_setup("opt-6.7b"), workload, gpu_batch_sizes=(4, 32), num_gpu_batches=(1, 3)):
        simulated = policy.evaluation.prefill_s + 15 * policy.evaluation.decode_s
        assert policy.solver.bound <= simulated * 1.02  # cache shares are rounded to sequences, contexts to their mean
        assert policy.tokens_per_s == pytest.approx(policy.plan.workload.batch * 16 / simulated)
        assert policy.solver.status == "Optimal"


def test_more_host_memory_is_never_worse() -> None:
    workload, rates = Workload(prompt=256, generate=16), []
    for ram in (48, 96, 208):
        drafts = _Drafts(_setup("opt-13b", ram), workload, FlexgenSettings())
        block = drafts.block(48, 2, cpu_attention=True)
        solved = None if block is None else solve(block)
        rates.append(float("inf") if solved is None else solved[1].bound)
    assert rates == sorted(rates, reverse=True)


def test_nothing_fits() -> None:
    with pytest.raises(DoesNotFit, match="no FlexGen policy fits OPT 175B"):
        plan_flexgen(_setup("opt-175b", 64), Workload(), gpu_batch_sizes=(4,), num_gpu_batches=(1,))


def test_splits_are_distinct_and_end_on_the_gpu() -> None:
    setup = _setup("opt-30b")
    splits = weight_splits(setup, disk=True)
    assert splits[-1] == (100, 0)
    assert len(set(splits)) == len(splits) < 100
    layer = layer_groups(setup.model.layers[0])
    realised = {tuple(homes(group, *split) for group in layer) for split in splits}
    assert len(realised) > 20
