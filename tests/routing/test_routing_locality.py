"""Measures of locality against their definitions: every router and every cache that a brute force can try."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.cli.routing import routing_lines
from stowplan.errors import InputError
from stowplan.routing.generate import UNIFORM, RoutingProfile, generate
from stowplan.routing.metrics import segment_cache, segment_coverage, segment_routing
from stowplan.routing.trace import RoutingTrace


def traces_of(experts: int, longest: int) -> st.SearchStrategy[RoutingTrace]:
    token = st.sets(st.integers(0, experts - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
    return st.lists(token, min_size=3, max_size=longest).map(lambda tokens: RoutingTrace(experts, tuple(tokens)))


@settings(deadline=None, max_examples=20)
@given(trace=traces_of(3, 5), segment=st.integers(1, 3))
def test_no_segment_router_has_a_better_f1(trace: RoutingTrace, segment: int) -> None:
    starts = range(len(trace.tokens) - segment + 1)
    asked = [
        [expert in chosen for chosen in trace.tokens[first : first + segment]]
        for first in starts
        for expert in range(trace.experts)
    ]
    best = 0.0
    for taken in product((False, True), repeat=len(asked)):
        right = sum(sum(uses) for uses, on in zip(asked, taken, strict=True) if on)
        wrong = sum(segment - sum(uses) for uses, on in zip(asked, taken, strict=True) if on)
        missed = sum(sum(uses) for uses, on in zip(asked, taken, strict=True) if not on)
        best = max(best, 2 * right / (2 * right + wrong + missed))
    assert segment_routing([trace], segment).f1 == pytest.approx(best)


def test_a_segment_router_of_single_tokens_is_perfect_and_of_uniform_routing_is_the_binomials() -> None:
    trace = generate(RoutingProfile(0.3, 0.4), 32, 4, 300)
    found = segment_routing([trace], 1)
    assert (found.f1, found.size) == (1.0, 1.0)
    # Independent draws of 8 of 64 experts: uses within a segment of 2 are binomial but for the draw of exactly eight.
    share = 8 / 64
    both, either = share * share, 1 - (1 - share) ** 2
    expected = max(2 * both * 2 / (both * 2 + 2 * share), 2 * 2 * share / (either * 2 + 2 * share))
    uniform = [generate(UNIFORM, 64, 8, 2000, seed) for seed in range(2)]
    assert segment_routing(uniform, 2).f1 == pytest.approx(expected, abs=0.01)
    always = RoutingTrace(6, ((1, 4),) * 9)
    assert segment_routing([always], 5).f1 == 1.0 and segment_routing([always], 5).size == 1.0


def test_segment_routing_pools_texts_under_one_threshold() -> None:
    # Alone, both texts are perfect at their own threshold; together 3 and 1 uses of 4 compete for one.
    steady, turning = RoutingTrace(4, ((0,),) * 8), RoutingTrace(4, tuple((number % 4,) for number in range(8)))
    alone = segment_routing([turning], 4)
    assert alone.f1 == pytest.approx(2 * 4 / (16 + 4)) and alone.size == 4.0
    together = segment_routing([steady, turning], 4)
    assert together.f1 == pytest.approx(2 * 20 / (20 + 40))  # only the steady text's expert is taken


def held_best(trace: RoutingTrace, segment: int, capacity: int) -> float:
    """The definition, token by token: of what is held, what the segment from here on uses least goes, oldest first."""
    held: list[int] = []  # oldest use first
    hits = 0
    for number, asked in enumerate(trace.tokens):
        hits += sum(expert in held for expert in asked)
        held = [expert for expert in held if expert not in asked]
        later = [expert for chosen in trace.tokens[number + 1 : number + segment] for expert in chosen]
        while len(held) + len(asked) > capacity:
            held.remove(min(held, key=later.count))
        held += asked
    return hits / sum(map(len, trace.tokens))


@settings(deadline=None, max_examples=40)
@given(trace=traces_of(6, 20), segment=st.integers(1, 8), spare=st.integers(0, 3))
def test_segment_caches_follow_their_definition(trace: RoutingTrace, segment: int, spare: int) -> None:
    capacity = max(map(len, trace.tokens)) + spare
    # Experts of one token are equally old, so ties are compared only by how many hits they make in the end.
    single = RoutingTrace(6, tuple((chosen[0],) for chosen in trace.tokens))
    assert segment_cache([single], segment, 1 + spare) == pytest.approx(held_best(single, segment, 1 + spare))
    assert 0.0 <= segment_cache([trace], segment, capacity) <= segment_cache([trace], segment, 6) + 1e-12


def test_segment_caches_may_be_shared_by_layers() -> None:
    same, turning = RoutingTrace(4, ((0,),) * 12), RoutingTrace(4, tuple((number % 3,) for number in range(12)))
    assert segment_cache([same], 4, 1) == pytest.approx(11 / 12)
    assert segment_cache([turning], 4, 1) == 0.0
    # Room for four holds the one expert of the first layer and all three of the second.
    assert segment_cache([same, turning], 4, 4) == pytest.approx((11 + 9) / 24)


def test_what_cannot_be_measured_is_refused() -> None:
    trace = RoutingTrace(4, ((0, 1), (1, 2)))
    for segment in (0, 3):
        with pytest.raises(InputError, match="at least one such segment"):
            segment_routing([trace], segment)
    with pytest.raises(InputError, match="at least one such segment"):
        segment_routing([], 1)
    with pytest.raises(InputError, match="cannot hold the 2"):
        segment_cache([trace], 2, 1)
    with pytest.raises(InputError, match="layers of one length"):
        segment_cache([trace, RoutingTrace(4, ((0, 1),))], 2, 4)
    with pytest.raises(InputError, match="both must be at least 1"):
        segment_coverage(trace, 2, 0)


def test_the_command_tells_both_measures_and_short_traces_too() -> None:
    trace = generate(RoutingProfile(0.3, 0.4), 16, 2, 400)
    for told in (trace, RoutingTrace(16, trace.tokens[:5])):
        segment = min(16, len(told.tokens))
        text = " ".join(" ".join(line.text for line in routing_lines(told)).split())
        assert f"of {segment} tokens in a row" in text
        assert f"(SRP) {segment_routing([told], segment).f1:.1%}" in text
        assert f"hits {segment_cache([told], segment, 4):.0%} (SCH)" in text
