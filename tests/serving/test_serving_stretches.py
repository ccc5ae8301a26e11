"""A replay in stretches and with scouts: the very same result, whoever ran what."""

from __future__ import annotations

import time
from array import array
from dataclasses import fields
from math import nan
from typing import Any

import numpy as np
import pytest
from tests.serving.test_serving_prefix import blocks_of
from tests.serving.test_serving_replay import STEP_TIME, assert_conserved, realistic

from stowplan.serving import scouts, stretches
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay, share_begun
from stowplan.serving.policies import Caching, make_engine, policy_of
from stowplan.serving.replay import chains_of, replay
from stowplan.serving.requests import Requests
from stowplan.serving.scouts import Scouts
from stowplan.serving.stretches import chains_from, fingerprint, marks_of, run_in_stretches
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Tier

LIMITS = Limits(kv_blocks=800, max_running=32, max_batched_tokens=512)
TIERS = (Tier("host", 1000, {"h2d": 1e-4}, 1e-4), Tier("disk", 2500, {"h2d": 1e-4, "disk": 3e-4}, 3e-4, 1e-4, 0.05))


def conversing(count: int, rate: float, seed: int = 5) -> Requests:
    """Requests of which many go on where one of the latest ones ended."""
    random = np.random.default_rng(seed)
    chains: list[list[int]] = []
    for fresh in range(count):
        earlier = chains[-1 - int(random.integers(0, min(30, fresh)))] if fresh and random.random() < 0.6 else []
        kept = earlier[: int(random.integers(0, len(earlier) + 1))] if random.random() < 0.2 else earlier
        chains.append([*kept, *(100 * fresh + j for j in range(int(random.integers(0, 6))))][:30])
    prompts = [32 * len(chain) + int(random.integers(1, 40)) for chain in chains]
    arrival = np.cumsum(random.gamma(0.25, 4.0 / rate, count))
    return Requests.of(arrival, prompts, random.integers(1, 90, count), prefix=blocks_of(chains, 32))


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit, in every column and account."""
    for each in fields(one):
        mine, theirs = getattr(one, each.name), getattr(other, each.name)
        if each.name == "engines":
            for left, right in zip(mine, theirs, strict=True):
                assert_same(left, right)
        elif isinstance(mine, np.ndarray):
            assert mine.tobytes() == theirs.tobytes(), each.name
        elif each.name != "requests":
            assert mine == theirs, each.name


@pytest.mark.parametrize(
    ("started", "share"),
    [
        ([nan] * 4, 0.0),
        ([0.0, nan, nan, nan], 0.25),
        ([0.0, 1.0, nan, 2.0], 1.0),
        ([0.0, nan, 1.0, nan], 0.75),
        ([], 1.0),
    ],
)
def test_the_last_request_that_has_begun_says_how_far_it_is(started: list[float], share: float) -> None:
    assert share_begun(array("d", started)) == share


def test_marks_are_rows_of_the_trace_and_depend_on_its_length_alone() -> None:
    assert list(marks_of(stretches._APART)) == []
    for count in (2_001, 50_000, 1_404_256):
        marks = marks_of(count)
        assert 1 <= len(marks) <= stretches._MARKS
        assert marks[0] == marks.step and marks[-1] < count <= marks[-1] + marks.step


@pytest.mark.parametrize("scheduler", ["continuous", "chunked", "shortest", "static", "fair"])
@pytest.mark.parametrize("rate", [0.5, 4.0, 100.0])
def test_pauses_change_nothing(scheduler: str, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pause wherever there can be one, and without any; 100 requests/s leave no moment to pause."""
    requests, limits = realistic(800, rate), Limits(kv_blocks=2000, max_running=32, max_batched_tokens=2048)
    whole = replay(requests, STEP_TIME, limits, scheduler)
    monkeypatch.setattr(stretches, "_APART", 1)
    monkeypatch.setattr(stretches, "_MARKS", 800)
    assert len(marks_of(800)) == 799
    parts = replay(requests, STEP_TIME, limits, scheduler)
    assert_conserved(parts)
    for name in ("state", "preemptions", "made_tokens"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    for name in ("started_s", "first_token_s", "finished_s"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-6)
    one, other = whole.engines[0], parts.engines[0]
    assert (one.passes, one.peak_blocks, one.swaps) == (other.passes, other.peak_blocks, other.swaps)
    assert np.array_equal(one.tally, other.tally)
    assert other.busy_s == pytest.approx(one.busy_s, rel=1e-9)


@pytest.mark.parametrize("caching", [Caching(), Caching(TIERS), Caching(TIERS, "cost")])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_pauses_change_nothing_about_a_cache(
    caching: Caching, preemption: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = conversing(1500, 4.0)
    limits = Limits(
        kv_blocks=110,
        max_running=32,
        max_batched_tokens=512,
        preemption=preemption,
        swap_blocks=90,
        swap_s_per_block=1e-4,
    )
    whole = replay(requests, STEP_TIME, limits, "chunked", caching)
    monkeypatch.setattr(stretches, "_APART", 7)
    monkeypatch.setattr(stretches, "_MARKS", 1500)
    parts = replay(requests, STEP_TIME, limits, "chunked", caching)
    assert whole.preemptions.any()
    one, other = whole.engines[0].cache, parts.engines[0].cache
    assert one is not None and other is not None
    assert one.looked_up_tokens == other.looked_up_tokens and one.samples == other.samples
    assert one.tiers == other.tiers
    np.testing.assert_allclose(parts.finished_s, whole.finished_s, rtol=0, atol=1e-6)


@pytest.mark.parametrize("caching", [None, Caching(), Caching(TIERS)])
def test_equal_fingerprints_have_equal_futures_and_come_in_time(caching: Caching | None) -> None:
    """Engines that start cold in the middle of a trace, against one that started at its beginning."""
    requests, count = conversing(6000, 1.0), 6000
    whole = replay(requests, STEP_TIME, LIMITS, "chunked", caching)
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    chains = chains_of(requests, LIMITS, caching)
    policy, prints = policy_of("chunked", LIMITS, caching), dict[int, dict[int, bytes]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "_APART", 50)
        patch.setattr(stretches, "_MARKS", 120)
        for start in (0, 1000, 3100):
            part, segments = (None, np.arange(0)) if chains is None else chains_from(chains, start)
            rows = requests.take(np.arange(start, count))
            tables = StepTables(STEP_TIME, longest, LIMITS)
            engine = make_engine(policy, rows, tables, LIMITS, caching, part, earlier=start, trace_requests=count)
            core, seen = engine.core, dict[int, bytes]()

            def pause(mark: int, seen: Any = seen, core: Any = core, start: int = start, names: Any = segments) -> bool:
                assert core.free == LIMITS.kv_blocks and core.waiting.arrival_of(core.waiting.next) > core.now
                seen[core.waiting.next + start] = fingerprint(core, start, names)
                return False

            run_in_stretches(engine, start, count, pause)
            prints[start] = seen
            met = [row for row, state in seen.items() if start and prints[0].get(row) == state]
            if start:
                assert met and met[0] < start + 1500, "what the cache holds was replaced long ago"
                assert met == [row for row in seen if row >= met[0]], "once the same, always the same"
                for mine, all_of_it in ((core.first, whole.first_token_s), (core.finished, whole.finished_s)):
                    assert np.asarray(mine)[met[0] - start :].tobytes() == all_of_it[met[0] :].tobytes()
    assert len(set(prints[0].values())) == len(prints[0])


def test_the_segments_of_later_prompts_are_the_same_tree() -> None:
    requests = conversing(400, 1.0)
    chains = chains_of(requests, LIMITS, Caching())
    assert chains is not None
    for start in (0, 1, 170, 399):
        part, segments = chains_from(chains, start)
        assert len(part.leaf) == 400 - start and list(segments) == sorted(segments)
        for request in range(start, 400):
            path = part.of(request - start)
            assert [int(segments[segment]) for segment in path] == chains.of(request)
            assert [part.ends[s] for s in path] == [chains.ends[s] for s in chains.of(request)]
            assert [part.sizes[s] for s in path] == [chains.sizes[s] for s in chains.of(request)]


def idle(which: Scouts, mission: Any) -> bool:
    """Whether nobody will ever pause: requests come faster than they are served, or no scout has started."""
    return not which._links or float(mission.requests.arrival_s[-1]) < 1000.0


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scouts for short traces, too, which get a head start; a list of how many every replay took findings from."""
    monkeypatch.setattr(scouts, "LEAST_ROWS", 6000)
    taken: list[int] = []
    adopt, send = Scouts.adopt, Scouts.send

    def waiting(self: Scouts, mission: Any) -> None:
        """Else it would depend on the machine who has published what by when."""
        send(self, mission)
        end = time.monotonic() + 30.0
        while any(rows < 6000 for rows in self._board.rows) and time.monotonic() < end and not idle(self, mission):
            if not all(process.is_alive() for process in self._processes):
                break
            time.sleep(0.01)

    def counted(self: Scouts, core: Any) -> Any:
        taken.append(len(self._found))
        return adopt(self, core)

    monkeypatch.setattr(Scouts, "adopt", counted)
    monkeypatch.setattr(Scouts, "send", waiting)
    return taken


@pytest.mark.parametrize(
    ("scheduler", "caching", "workers"),
    [("continuous", None, 2), ("chunked", Caching(), 3), ("chunked", Caching(TIERS), 2)],
)
def test_processes_share_a_trace_and_the_result_is_the_same(
    scheduler: str, caching: Caching | None, workers: int, few: list[int]
) -> None:
    requests = conversing(40_000, 2.0)
    alone = replay(requests, STEP_TIME, LIMITS, scheduler, caching)
    shares: list[Any] = []
    together = replay(requests, STEP_TIME, LIMITS, scheduler, caching, workers=workers, watch=shares.append)
    assert few[0] == 0 and 1 <= few[1] <= workers - 1
    assert_same(together, alone)
    assert_conserved(together)
    assert [share() for share in shares] == [1.0]


def _replayed(requests: Requests, caching: Caching | None, workers: int) -> Replay:
    return replay(requests, STEP_TIME, LIMITS, "chunked", caching, workers=workers)


def test_a_trace_without_pauses_is_replayed_by_one_process(few: list[int]) -> None:
    requests = realistic(20_000, 50.0)
    assert_same(_replayed(requests, None, 2), _replayed(requests, None, 1))
    assert few == [0, 0]


def test_what_all_of_the_past_matters_for_is_replayed_by_one_process(few: list[int]) -> None:
    requests, started = conversing(20_000, 2.0), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scouts, "send", lambda self, _: started.append(len(self._processes)))
        _replayed(requests, Caching(TIERS, "cost"), 4)
        _replayed(requests.take(np.arange(5000)), Caching(TIERS), 4)
    assert started == [0, 0] and few == [0, 0]


def test_a_scout_that_dies_is_not_missed(few: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = conversing(20_000, 2.0)
    alone = _replayed(requests, Caching(), 1)
    send = Scouts.send

    def end_them(self: Scouts, mission: Any) -> None:
        if few[1:]:
            for process in self._processes:
                process.terminate()
                process.join()
        send(self, mission)

    def after_the_match(self: Scouts, scout: int) -> bool:
        self._processes[scout].terminate()
        self._processes[scout].join()
        self._links[scout].close()
        return receive(self, scout)

    receive = Scouts._receive
    monkeypatch.setattr(Scouts, "send", end_them)
    with monkeypatch.context() as patch:
        patch.setattr(Scouts, "_receive", after_the_match)
        assert_same(_replayed(requests, Caching(), 2), alone)
    assert_same(_replayed(requests, Caching(), 2), alone)
    assert few == [0, 0, 0]
