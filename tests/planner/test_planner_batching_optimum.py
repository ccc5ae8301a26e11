from __future__ import annotations

import csv
import gzip
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.planner.batching import Batching, batch_requests, compare
from stowplan.planner.batching_classes import length_classes, view
from stowplan.planner.batching_columns import Master, filled
from stowplan.planner.batching_costs import Limits, Requests, StaticCost, fixed_seconds
from stowplan.planner.batching_exact import feasible_batches
from stowplan.planner.batching_levels import convex_envelope, fewest_batches, level_bound, nondecreasing, prefill_bound
from stowplan.planner.batching_methods import BASELINES, best_cuts, first_fit, longest_outputs_first, stratified
from stowplan.planner.batching_run import run_batches

SHAREGPT = (
    Path(__file__).resolve().parents[2].parent
    / "shared/data/traces/lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv.gz"
)
MEMORY_BOUND = StaticCost.of_pieces([(2e-2, 5e-5), (0.0, 4e-4)], 256, context_s=2e-8, pass_s=2e-2, token_s=2e-5)
EXPERTS = StaticCost(tuple(2e-3 + 2e-2 * (1 - (15 / 16) ** n) for n in range(1, 257)), context_s=2e-8, token_s=2e-5)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for k in range(len(rest)):
            yield [*rest[:k], [items[0], *rest[k]], *rest[k + 1 :]]


def keeps(batches: list[list[int]], requests: Requests, limits: Limits) -> bool:
    return all(
        len(members) <= limits.max_batch and requests.reserved[members].sum() <= limits.cache_tokens
        for members in batches
    )


def brute_force(requests: Requests, cost: StaticCost, limits: Limits) -> float:
    """The least makespan over all partitions, each run step by step."""
    return min(
        run_batches(batches, requests, cost)[-1].end_s
        for batches in partitions(list(range(len(requests))))
        if keeps(batches, requests, limits)
    )


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> tuple[Requests, StaticCost, Limits]:
    count = draw(st.integers(1, most))
    prompt = draw(st.lists(st.integers(1, 30), min_size=count, max_size=count))
    output = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    requests = Requests.of(prompt, output)
    steps = draw(
        st.one_of(
            st.lists(st.floats(0.01, 5.0), min_size=most, max_size=most).map(tuple),  # any shape at all
            st.floats(0.5, 0.99).map(lambda q: tuple(1.0 - q**n for n in range(1, most + 1))),  # concave
            st.floats(0.1, 2.0).map(lambda a: tuple(max(1.0, a * n) for n in range(1, most + 1))),  # convex
        )
    )
    cost = StaticCost(steps, 1e-3, draw(st.floats(0.0, 3.0)), 1e-2, 1e-4, draw(st.integers(5, 60)))
    longest = int(requests.reserved.max())
    limits = Limits(longest + draw(st.integers(0, 60)), draw(st.integers(1, most)))
    return requests, cost, limits


def served_once(batching: Batching, requests: Requests) -> None:
    assert sorted(i for batch in batching.batches for i in batch.requests) == list(range(len(requests)))


@given(problems())
@settings(max_examples=40)
def test_few_requests_are_solved_exactly(problem: tuple[Requests, StaticCost, Limits]) -> None:
    requests, cost, limits = problem
    found = batch_requests(requests, cost, limits)
    least = brute_force(*problem)
    assert found.method == "exact"
    assert found.makespan_s == pytest.approx(least, rel=1e-6)
    assert found.gap < 1e-5
    served_once(found, requests)
    assert keeps([list(batch.requests) for batch in found.batches], requests, limits)


def test_twelve_requests_are_solved_with_a_closed_gap() -> None:
    """The least over all subsets, by dynamic programming over them."""
    draw = np.random.default_rng(1)
    for cost in (MEMORY_BOUND, EXPERTS):
        requests = Requests.of(draw.integers(1, 900, 12).tolist(), draw.integers(1, 600, 12).tolist())
        limits = Limits(int(requests.reserved.max()) + 900, 12)
        seconds = {sum(1 << i for i in c.members): c.seconds for c in feasible_batches(requests, cost, limits)}
        least = [0.0] + [np.inf] * (2**12 - 1)
        for served in range(1, 2**12):
            last = served.bit_length() - 1
            rest = served & ~(1 << last)
            part = rest
            while True:  # every subset of the rest, with the last request
                batch = part | 1 << last
                if batch in seconds:
                    least[served] = min(least[served], least[served ^ batch] + seconds[batch])
                if not part:
                    break
                part = (part - 1) & rest
        found = batch_requests(requests, cost, limits)
        assert found.makespan_s == pytest.approx(least[-1], rel=1e-9)
        assert found.gap < 1e-6


@given(problems())
@settings(max_examples=60)
def test_no_bound_exceeds_the_optimum(problem: tuple[Requests, StaticCost, Limits]) -> None:
    requests, cost, limits = problem
    least = brute_force(*problem)
    assert level_bound(requests, cost, limits) <= least * (1 + 1e-9)
    others = fixed_seconds(cost, requests) + prefill_bound(requests, cost, limits)
    for most in (1, 3, 8):  # few classes are coarse: their bound is weak, and still a bound
        shortest = view(length_classes(requests, most), requests, longest=False)
        master = Master.of(shortest, nondecreasing(np.asarray(cost.step_s[: limits.max_batch])), limits, longest=False)
        master.start([])
        master.generate()
        assert master.bound + others <= least * (1 + 1e-6) + 1e-9


@given(problems())
@settings(max_examples=40)
def test_every_rule_keeps_the_limits_and_serves_every_request(problem: tuple[Requests, StaticCost, Limits]) -> None:
    requests, cost, limits = problem
    order = longest_outputs_first(requests)
    found = {name: method(requests, cost, limits) for name, method in BASELINES.items()}
    found["cuts"] = best_cuts(order, requests, cost, limits)
    found["balanced"] = first_fit(order, requests, limits, most=limits.max_batch, fit="balanced")
    found["strata"] = stratified(order, requests, limits, 3, by_tokens=True)
    longest = view(length_classes(requests, 4), requests, longest=True)
    master = Master.of(longest, np.asarray(cost.step_s[: limits.max_batch]), limits, longest=True)
    master.start([])
    master.generate()
    found["columns"] = filled(master.rounded(), longest, requests, limits)
    least = brute_force(*problem)
    for name, batches in found.items():
        assert sorted(i for members in batches for i in members) == list(range(len(requests))), name
        assert keeps(batches, requests, limits), name
        assert run_batches(batches, requests, cost)[-1].end_s >= least * (1 - 1e-9), name
    for members in found["padded"]:
        widest = requests.prompt[members].max() + requests.output[members].max()
        assert len(members) * widest <= limits.cache_tokens


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(20, 45), st.integers(1, 7))
@settings(max_examples=40)
def test_fewest_batches_is_a_bound_on_bin_packing(sizes: list[int], capacity: int, most: int) -> None:
    def fits(batches: list[list[int]]) -> bool:
        return all(len(b) <= most and sum(sizes[i] for i in b) <= capacity for b in batches)

    least = min(len(batches) for batches in partitions(list(range(len(sizes)))) if fits(batches))
    assert fewest_batches(np.asarray(sizes), Limits(capacity, most))[-1] <= least


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=12))
def test_envelope_is_convex_and_below(values: list[float]) -> None:
    steps = np.asarray(values)
    envelope = convex_envelope(steps)
    assert (envelope <= steps + 1e-9).all()
    assert (np.diff(envelope, 2) >= -1e-9).all()
    assert envelope[0] == steps[0]
    assert envelope[-1] == steps[-1]


def lognormal(count: int, seed: int) -> Requests:
    """Lengths with the spread of chats: medians of 600 and 220 tokens."""
    draw = np.random.default_rng(seed)
    prompt = np.clip(draw.lognormal(6.4, 1.1, count), 1, 6000).astype(np.int64)
    output = np.clip(draw.lognormal(5.4, 0.9, count), 1, 2000).astype(np.int64)
    return Requests.of(prompt.tolist(), output.tolist())


def sharegpt(count: int) -> Requests:
    if not SHAREGPT.is_file():
        pytest.skip("the ShareGPT lengths are not on this machine")
    with gzip.open(SHAREGPT, "rt", encoding="utf-8") as file:
        rows = [(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])) for row in csv.DictReader(file)]
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return Requests.of([max(1, rows[i][0]) for i in chosen], [rows[i][1] for i in chosen])


def assert_order_of_methods(requests: Requests, cost: StaticCost, limits: Limits, best: Batching) -> None:
    """Batches, run step by step, take what was said, and every rule that looks at less takes longer."""
    others = compare(requests, cost, limits)
    ran = run_batches([batch.requests for batch in best.batches], requests, cost)[-1].end_s
    assert ran == pytest.approx(best.makespan_s, rel=1e-9)
    for name, other in others.items():
        if name != "padded":
            again = run_batches([batch.requests for batch in other.batches], requests, cost)[-1].end_s
            assert again == pytest.approx(other.makespan_s, rel=1e-9)
    seconds = {name: other.makespan_s for name, other in others.items()}
    assert best.makespan_s <= seconds["sorted"] <= seconds["first_come"] <= seconds["padded"]
    assert best.makespan_s <= min(seconds["bin_packed"], seconds["mixed"])


@pytest.mark.parametrize(
    "cost", [MEMORY_BOUND, pytest.param(EXPERTS, marks=pytest.mark.slow)], ids=["dense", "experts"]
)
def test_ten_thousand_lognormal_requests(cost: StaticCost) -> None:
    requests, limits = lognormal(10_000, 7), Limits(65_536, 256)
    started = time.perf_counter()
    best = batch_requests(requests, cost, limits)
    assert time.perf_counter() - started < 20
    assert best.gap < 0.03
    served_once(best, requests)
    assert keeps([list(batch.requests) for batch in best.batches], requests, limits)
    assert_order_of_methods(requests, cost, limits, best)


@pytest.mark.parametrize("cache_tokens", [pytest.param(16_384, marks=pytest.mark.slow), 65_536])
def test_ten_thousand_chats(cache_tokens: int) -> None:
    requests, limits = sharegpt(10_000), Limits(cache_tokens, 256)
    started = time.perf_counter()
    best = batch_requests(requests, MEMORY_BOUND, limits)
    assert time.perf_counter() - started < 20
    assert best.gap < 0.03
    assert_order_of_methods(requests, MEMORY_BOUND, limits, best)


def test_large_sets_are_dealt_to_shares() -> None:
    requests, limits = lognormal(21_000, 11), Limits(200_000, 256)
    best = batch_requests(requests, MEMORY_BOUND, limits)
    assert best.gap < 0.03
    served_once(best, requests)
    assert keeps([list(batch.requests) for batch in best.batches], requests, limits)


def test_columns_close_the_gap_where_requests_have_few_shapes() -> None:
    """Three shapes that fill a batch only together: a bound by totals alone is far off, columns are exact."""
    shapes = [(50, 10), (29, 10), (11, 10)]
    requests = Requests.of([p for p, _ in shapes] * 20, [g for _, g in shapes] * 20)
    limits = Limits(115, 8)
    best = batch_requests(requests, StaticCost((1.0,) * 8), limits)
    assert best.gap < 0.02
    assert "columns" in best.bounds
    served_once(best, requests)


def test_batches_run_in_the_order_that_finishes_requests_soonest() -> None:
    requests = lognormal(200, 3)
    best = batch_requests(requests, MEMORY_BOUND, Limits(20_000, 64))
    runs = run_batches([batch.requests for batch in best.batches], requests, MEMORY_BOUND)
    backwards = run_batches([batch.requests for batch in best.batches[::-1]], requests, MEMORY_BOUND)
    assert sum(sum(run.finish_s) for run in runs) < sum(sum(run.finish_s) for run in backwards)
    rates = [batch.time.seconds / len(batch.requests) for batch in best.batches]
    assert rates == sorted(rates)


def test_same_requests_same_batches() -> None:
    requests, limits = lognormal(400, 5), Limits(9_000, 16)
    first, second = (batch_requests(requests, MEMORY_BOUND, limits) for _ in range(2))
    assert first.batches == second.batches
    assert first.bounds == second.bounds


def test_more_requests_per_batch_than_the_cost_knows_are_refused() -> None:
    with pytest.raises(InputError, match="known up to 2"):
        batch_requests(Requests.of([1], [1]), StaticCost((1.0, 1.0)), Limits(10, 3))
