"""Answers in the prefix cache: which later prompt holds one, which blocks it has, and that the next turn finds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.naive_cache import Key, NaiveCachingEngine, answers_of, keys_of
from tests.serving.test_serving_prefix import blocks_of, families
from tests.serving.test_serving_replay import STEP_TIME, assert_conserved, assert_equal

from stowplan.serving.chains import Chains
from stowplan.serving.fleet import Migration, replay_fleet
from stowplan.serving.limits import Limits
from stowplan.serving.policies import Caching
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.stretches import chains_from
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Tier

BLOCK = 4
ROOMY = Limits(kv_blocks=1000, block_tokens=BLOCK, max_running=8, max_batched_tokens=64, watermark=0.0)
TABLES = StepTables(STEP_TIME, 400, ROOMY)


def chains_of(requests: Requests, block_tokens: int = BLOCK) -> Chains:
    assert requests.prefix is not None
    return Chains.from_blocks(
        requests.prefix, requests.prompt_tokens, block_tokens, requests.output_tokens, requests.session
    )


def path_to(chains: Chains, segment: int) -> list[tuple[int, int]]:
    """(segment, place in it) of every block from the beginning of a prompt to a segment's end."""
    path: list[tuple[int, int]] = []
    while segment:
        path = [*((segment, place) for place in range(chains.sizes[segment])), *path]
        segment = chains.parent[segment]
    return path


@settings(max_examples=100)
@given(requests=families(12), block=st.sampled_from([12, 6, 4, 3]))
def test_an_answer_has_the_first_blocks_behind_its_prompt_of_the_one_that_holds_it(
    requests: Requests, block: int
) -> None:
    found = chains_of(requests, block)
    prompts, answers = keys_of(requests, block), answers_of(requests, block, list(range(len(requests))))
    at: dict[Key, tuple[int, int]] = {}
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert found.ends[found.leaf[row]] == len(prompt)
        path = path_to(found, found.answer[row])
        assert 0 <= found.beyond[row] < max(1, found.sizes[found.answer[row]])
        path = path[: len(path) - found.beyond[row]]
        assert len(path) == len(prompt) + len(answer)
        for key, place in zip([*prompt, *answer], path, strict=True):
            assert at.setdefault(key, place) == place


def two_turns(**changed: list[int]) -> Requests:
    """A prompt of 2 blocks and 1 token with an answer of 8, then the prompt that holds both and 3 tokens more."""
    columns = {"prompt_tokens": [9, 20], "output_tokens": [8, 1], "session": [5, 5]} | changed
    chains = [list(range(1, tokens // BLOCK + 1)) for tokens in columns["prompt_tokens"]]
    return Requests.of(np.arange(len(chains)) * 10.0, **columns, prefix=blocks_of(chains, BLOCK))


@pytest.mark.parametrize(
    ("changed", "reused"),
    [
        ({}, 16),  # 16 of 17 tokens are cached, for the last one never is
        ({"output_tokens": [7, 1]}, 12),
        ({"session": [5, 6]}, 8),
        ({"session": [-1, -1]}, 8),
        ({"prompt_tokens": [9, 17]}, 16),
        ({"prompt_tokens": [9, 16]}, 8),  # too short for prompt and answer
    ],
)
def test_the_next_turn_finds_the_answer(changed: dict[str, list[int]], reused: int) -> None:
    for scheduler in ("chunked", "continuous", "shortest", "shortest-chunked"):
        found = replay(two_turns(**changed), STEP_TIME, ROOMY, scheduler, Caching())
        assert found.reused_tokens.tolist() == [0, reused]


def test_the_next_turn_finds_the_answer_in_host_memory() -> None:
    """Between the turns, somebody else needs the whole GPU."""
    turns = two_turns()
    assert turns.prefix is not None and turns.session is not None
    chains = [turns.prefix.of(0).tolist(), list(range(100, 110)), turns.prefix.of(1).tolist()]
    requests = Requests.of([0, 5, 10], [9, 40, 20], [8, 1, 1], prefix=blocks_of(chains, BLOCK), session=[5, -1, 5])
    limit = replace(ROOMY, kv_blocks=10)
    free = {"h2d": 0.0}
    found = replay(requests, STEP_TIME, limit, "chunked", Caching((Tier("host", 100, free, 0.0),)))
    use = found.engines[0].cache
    assert use is not None
    assert found.reused_tokens.tolist() == [0, 0, 16]
    assert [tier.hit_tokens for tier in use.tiers] == [0, 16]
    blind = replay(
        replace(requests, session=None), STEP_TIME, limit, "chunked", Caching((Tier("host", 100, free, 0.0),))
    )
    assert blind.reused_tokens.tolist() == [0, 0, 8]


def test_a_shorter_prompt_that_goes_on_from_there_says_that_the_answer_was_cut() -> None:
    turns = {"prompt_tokens": [9, 12, 28], "session": [5, 5, 5]}
    for last, blocks in ((4, 3), (5, 4)):  # 12 + 4 - 1 tokens are no more whole blocks than the prompt has
        chains = chains_of(two_turns(**turns | {"output_tokens": [8, last, 1]}))
        assert chains.answer[0] == chains.leaf[0]
        assert chains.ends[chains.answer[1]] - chains.beyond[1] == blocks


def test_a_request_beside_the_conversation_does_not_hide_the_next_turn() -> None:
    """Something else is asked in between, as for a title; of what begins alike, the first counts."""
    prefix = blocks_of([[1, 2], [9], [1, 2, 3, 4, 5], [1, 2, 3, 6, 7]], BLOCK)
    requests = Requests.of([0, 1, 2, 3], [9, 5, 20, 20], [8, 1, 1, 1], prefix=prefix, session=[0, 0, 0, 0])
    chains = chains_of(requests)
    assert chains.ends[chains.answer[0]] - chains.beyond[0] == 4
    assert chains.answer[0] in chains.of(2)
    assert chains.answer[0] not in chains.of(3)
    beside = 8  # requests of the conversation that are looked at
    for between in (beside - 1, beside):
        rows = [[1, 2], *([90 + i] for i in range(between)), [1, 2, 3, 4, 5]]
        requests = Requests.of(
            np.arange(len(rows)),
            [9, *[5] * between, 20],
            [8, *[1] * between, 1],
            prefix=blocks_of(rows, BLOCK),
            session=[0] * len(rows),
        )
        found = chains_of(requests)
        assert (found.answer[0] != found.leaf[0]) == (between < beside)


def test_what_others_hold_of_an_answer_is_not_counted_twice() -> None:
    chains = chains_of(two_turns())
    cache = PrefixCache(chains, TABLES)
    assert cache.admit(0, 9, 100, 0.0, 100) == (0, 0)
    assert cache.admit(1, 20, 100, 0.0, 100) == (8, 2), "the next turn comes before the answer has ended"
    assert cache.release(0) == 2
    assert cache.loose_blocks == 0
    assert cache.release(1) == 0
    assert cache.loose_blocks == 5
    assert cache.admit(0, 9, 100, 0.0, 100) == (8, 0)
    assert cache.release(0) == 0
    assert cache.loose_blocks == 5, "the blocks are there, and are fresh again"
    cache.shrink(4, 1.0)
    assert cache.look_up(1, 20).tokens == 16, "the end behind the answer went first"
    cache.shrink(3, 1.0)
    assert cache.look_up(1, 20).tokens == 12


@pytest.mark.parametrize("eviction", ["lru", "cost"])
def test_who_is_preempted_leaves_nothing_of_the_answer_and_who_was_copied_neither(eviction: str) -> None:
    chains = chains_of(two_turns())
    cache = PrefixCache(chains, TABLES, (), "lru" if eviction == "lru" else "cost")
    cache.admit(0, 9, 100, 0.0, 100)
    cache.release(0, computed=2)
    assert (cache.loose_blocks, cache.look_up(1, 20).tokens) == (2, 8)
    cache.detach(0)
    assert cache.release(0) == 0
    assert (cache.loose_blocks, cache.look_up(1, 20).tokens) == (2, 8)


@st.composite
def talks(draw: st.DrawFn) -> Requests:
    """Conversations whose prompts grow by the answers, some of them cut, with prompts of others in between."""
    seed, count = draw(st.integers(0, 2**32)), draw(st.integers(20, 60))
    return talk(seed, count, draw(st.sampled_from([0.05, 0.5, 5.0])))


def talk(seed: int, count: int, gap_s: float) -> Requests:
    random = np.random.default_rng(seed)
    rows: list[tuple[list[int], int, int, int]] = []
    latest: list[int] = []
    for fresh in range(0, 10**4 * count, 10**4):
        output = int(random.integers(1, 90))
        if not latest or random.random() < 0.15:
            chain, prompt, session = [], int(random.integers(1, 120)), int(random.integers(-1, count))
        else:
            cut = 0 if random.random() < 0.8 else int(random.integers(1, 20))
            place = int(random.integers(max(0, len(latest) - 12), len(latest)))
            before = rows[latest[place] if random.random() < 0.1 else latest.pop(place)]  # some are answered twice
            chain, session = before[0], before[3]
            prompt = max(1, before[1] + before[2] - cut + int(random.integers(0, 60)))
        if prompt > 700:
            chain, prompt, session = [], 50, -1
        whole = prompt // 32
        latest.append(len(rows))
        rows.append(([*chain[:whole], *range(fresh, fresh + whole - len(chain[:whole]))], prompt, output, session))
    chains, prompts, outputs, sessions = zip(*rows, strict=True)
    return Requests.of(
        np.cumsum(random.gamma(0.3, gap_s / 0.3, count)),
        prompts,
        outputs,
        prefix=blocks_of(list(chains), 32),
        session=sessions,
    )


@pytest.mark.parametrize("scheduler", ["continuous", "chunked"])
@pytest.mark.parametrize(("seed", "swap"), [(1, False), (2, True)])
def test_equals_the_oracle_under_pressure(scheduler: str, seed: int, swap: bool) -> None:
    """Preemptions, evictions and loads all along."""
    requests = talk(seed, 150, 0.3)
    limit = Limits(kv_blocks=60, max_running=12, max_batched_tokens=512, watermark=0.0)
    if swap:
        limit = replace(limit, preemption="swap", swap_blocks=60, swap_s_per_block=1e-4)
    tier = Tier("host", 160, {"h2d": 0.0}, 0.0)
    found = replay(requests, STEP_TIME, limit, scheduler, Caching((tier,)))
    oracle = NaiveCachingEngine(requests, STEP_TIME, limit, chunked=scheduler == "chunked", host=160)
    oracle.run()
    assert_conserved(found)
    assert_equal(found, oracle)
    assert found.preemptions.sum() > 10
    assert not swap or found.swaps > 0
    use = found.engines[0].cache
    assert use is not None
    assert [tier.hit_tokens for tier in use.tiers] == oracle.hits
    blind = replay(replace(requests, session=None), STEP_TIME, limit, scheduler, Caching((tier,)))
    assert found.reused_tokens.sum() > blind.reused_tokens.sum()


def test_an_answer_that_ends_after_the_turn_that_holds_it_makes_that_one_fresh() -> None:
    """Turns that overlap, as in a log that is replayed faster than it was; then others take the room bit by bit."""
    chains = [[1, 2], list(range(1, 13)), [20, 21, 22, 23], [], list(range(1, 13)), [20, 21, 22, 23]]
    found = set[tuple[int, int]]()
    for blocks in range(8, 24):
        requests = Requests.of(
            [0.0, 0.05, 0.12, 3.0, 5.0, 6.0],
            [9, 50, 17, 4 * blocks, 50, 17],
            [30, 1, 1, 1, 1, 1],
            prefix=blocks_of(chains, BLOCK),
            session=[0, 0, -1, -1, -1, -1],
        )
        limit = replace(ROOMY, kv_blocks=24)
        mine = replay(requests, STEP_TIME, limit, "chunked", Caching())
        oracle = NaiveCachingEngine(requests, STEP_TIME, limit, chunked=True)
        oracle.run()
        assert_equal(mine, oracle)
        assert mine.reused_tokens.sum() == oracle.hits[0]
        assert mine.finished_s[1] < mine.started_s[2] < mine.finished_s[2] < mine.finished_s[0]
        found.add((int(mine.reused_tokens[-2]), int(mine.reused_tokens[-1])))
    assert len(found) > 10
    assert all(turn == 48 or other == 0 for turn, other in found), "what was used before the answer ended goes first"


@settings(max_examples=25)
@given(
    requests=talks(),
    engines=st.integers(2, 3),
    blocks=st.sampled_from([60, 140, 10**4]),
    ahead=st.booleans(),
    patience=st.none() | st.floats(0.1, 5.0),
)
def test_no_block_is_lost_on_several_engines(
    requests: Requests, engines: int, blocks: int, ahead: bool, patience: float | None
) -> None:
    limit = Limits(kv_blocks=blocks, max_running=12, max_batched_tokens=512, patience_s=patience)
    caching = Caching((Tier("host", 100, {"h2d": 1e-5}, 1e-5), Tier("disk", 300, {"disk": 1e-4}, 1e-4)), "cost")
    found = replay_fleet(
        requests,
        STEP_TIME,
        limit,
        "chunked",
        engines=engines,
        router="prefix",
        migration=Migration(0.05, 1e-4, 0.01),
        caching=caching,
        ahead=ahead,
    )
    assert_conserved(found)


def test_the_answers_of_later_requests_are_the_same_without_the_earlier_ones() -> None:
    requests = talk(3, 80, 1.0)
    chains = chains_of(requests, 16)
    for start in (0, 1, 37, 79):
        part, segments = chains_from(chains, start)
        assert segments[part.answer].tolist() == chains.answer[start:].tolist()
        assert part.beyond.tolist() == chains.beyond[start:].tolist()


def test_some_of_the_requests_keep_their_conversations() -> None:
    turns = two_turns()
    assert turns.session is not None
    assert turns.take(np.array([1])).session == pytest.approx([5])
    assert replace(turns, session=None).take(np.array([1])).session is None
