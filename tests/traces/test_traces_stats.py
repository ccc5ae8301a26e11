"""Statistics agree with plain loops, with small cases done by hand, and with what others published."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.traces.catalogue import find
from stowplan.traces.page import page
from stowplan.traces.reading import load_trace, read_trace
from stowplan.traces.rows import FAILURES
from stowplan.traces.stats import fano_factor, gap_variation, prefix_reuse, session_statistics, statistics
from stowplan.traces.synthesis import load_parameters, synthesise
from stowplan.traces.trace import Blocks, Trace

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "traces"
QUICK = settings(deadline=None, max_examples=60)


def reference(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the reference file {name} is not beside this checkout")
    return path


@given(st.lists(st.tuples(st.lists(st.integers(0, 6), max_size=6), st.integers(1, 40)), min_size=1, max_size=20))
@QUICK
def test_reuse_agrees_with_a_plain_loop(requests: list[tuple[list[int], int]]) -> None:
    counts = [len(hashes) for hashes, _ in requests]
    prefix = Blocks(
        np.concatenate(([0], np.cumsum(counts))),
        np.array([value for hashes, _ in requests for value in hashes], dtype=np.int64),
        8,
    )
    found = prefix_reuse(prefix, np.array([tokens for _, tokens in requests]))
    known: set[int] = set()
    seen = hit = 0
    for hashes, tokens in requests:
        run = 0
        while run < len(hashes) and hashes[run] in known:
            run += 1
        hit += min(8 * run, tokens)
        seen += sum(value in known for value in hashes)
        known.update(hashes)
    assert found.seen_share == pytest.approx(seen / sum(counts) if sum(counts) else 0.0)
    assert found.hit_tokens_share == pytest.approx(hit / sum(tokens for _, tokens in requests))
    assert found.distinct == len(known)


def test_bursts_by_hand() -> None:
    assert gap_variation(np.array([0.0, 1.0, 2.0, 3.0])) == 0.0
    assert gap_variation(np.array([0.0, 0.0, 4.0])) == pytest.approx(1.0)
    assert gap_variation(np.array([0.0, 1.0])) is None
    assert gap_variation(np.zeros(5)) is None
    assert fano_factor(np.array([0.0, 0.1, 0.2, 1.5, 2.0]), 1.0) == pytest.approx(1.0 / 2.0)
    assert fano_factor(np.array([0.0, 1.5]), 1.0) is None


def test_poisson_has_one_and_one() -> None:
    arrival = np.cumsum(np.random.default_rng(0).exponential(0.1, 100_000))
    assert gap_variation(arrival) == pytest.approx(1.0, rel=0.02)
    assert fano_factor(arrival, 1.0) == pytest.approx(1.0, rel=0.05)


def test_sessions_by_hand() -> None:
    found = session_statistics(np.array([3, -1, 3, 5, 3]), np.array([0.0, 1.0, 4.0, 5.0, 10.0]))
    assert (found.sessions, found.requests, found.turns.mean) == (2, 4, 2.0)
    assert found.gap_s is not None
    assert (found.gap_s.least, found.gap_s.most) == (4.0, 6.0)
    assert session_statistics(np.array([-1]), np.array([0.0])).sessions == 0


def test_the_document_is_json_and_the_page_is_self_contained() -> None:
    one = Trace("<one>", np.zeros(1), np.array([1]), np.array([1]))
    for trace in (load_trace("burstgpt-3-first-400"), one):
        found = statistics(trace)
        document = json.loads(json.dumps(found.document(), allow_nan=False))
        assert document["requests"] == len(trace)
        text = page(trace, found)
        assert text == page(trace, found)
        assert "<svg" in text
        assert "http" not in text
        assert "<one>" not in text


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("burstgpt/BurstGPT_1.first400.csv.gz", ("Timestamp", "Request tokens", "Response tokens"), 400),
        ("burstgpt/BurstGPT_3.first400.csv.gz", ("Timestamp", "Request tokens", "Response tokens"), 400),
        ("azure/AzureLLMInferenceTrace_code.csv.gz", ("", "ContextTokens", "GeneratedTokens"), 8819),
        ("azure/AzureLLMInferenceTrace_conv.csv.gz", ("", "ContextTokens", "GeneratedTokens"), 19366),
    ],
)
def test_real_files_agree_with_a_plain_reader(name: str, columns: tuple[str, str, str], rows: int) -> None:
    path = reference(name)
    with gzip.open(path, "rt", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == rows
    good = [row for row in table if int(row[columns[2]]) > 0]
    found = statistics(read_trace(path))
    assert found.requests == len(good)
    assert sum(found.dropped.values()) == rows - len(good)
    assert found.prompt_total == sum(int(row[columns[1]]) for row in good)
    assert found.output_total == sum(int(row[columns[2]]) for row in good)
    if columns[0]:
        times = [float(row[columns[0]]) for row in good]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        mean = sum(gaps) / len(gaps)
        assert found.duration_s == pytest.approx(times[-1] - times[0])
        assert found.gap_cv == pytest.approx(math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean)


def test_first_rows_of_burstgpt() -> None:
    first = statistics(read_trace(reference("burstgpt/BurstGPT_1.first400.csv.gz")))
    assert dict(first.dropped) == {FAILURES: 17}
    assert first.duration_s == 37274 - 5
    path = reference("burstgpt/BurstGPT_3.first400.csv.gz")
    third = statistics(read_trace(path))
    assert dict(third.dropped) == {FAILURES: 1}
    with gzip.open(path, "rt", newline="") as file:
        names = [row["Session ID"] for row in csv.DictReader(file) if row["Response tokens"] != "0"]
    known = [name for name in names if name not in ("", "nan")]
    assert third.sessions is not None
    assert (third.sessions.sessions, third.sessions.requests) == (len(set(known)), len(known))


@pytest.mark.parametrize(("part", "prompt", "output"), [("code", 1500, 13), ("conv", 1020, 129)])
def test_azure_has_the_medians_that_splitwise_reports(part: str, prompt: float, output: float) -> None:
    found = statistics(read_trace(reference(f"azure/AzureLLMInferenceTrace_{part}.csv.gz")))
    assert found.prompt.quantiles["0.5"] == pytest.approx(prompt, rel=0.03)
    assert found.output.quantiles["0.5"] == pytest.approx(output, rel=0.03)


def test_azure_excerpts_are_the_first_rows_of_the_files() -> None:
    for excerpt, name in (("code", "code"), ("conversation", "conv")):
        whole = gzip.decompress(reference(f"azure/AzureLLMInferenceTrace_{name}.csv.gz").read_bytes())
        assert whole.startswith(find(f"azure-2023-{excerpt}-first-400").path.read_bytes())


def test_mooncake_conversation() -> None:
    path = reference("mooncake/conversation_trace.jsonl.gz")
    found = statistics(read_trace(path))
    assert found.requests == 12031
    assert round(found.prompt.mean) == 12035  # both as in the table of FAST 2025
    assert round(found.output.mean) == 343
    assert found.reuse is not None
    known: set[int] = set()
    hit = total = 0
    for line in io.StringIO(gzip.decompress(path.read_bytes()).decode()):
        row = json.loads(line)
        run = next((place for place, value in enumerate(row["hash_ids"]) if value not in known), len(row["hash_ids"]))
        hit += min(512 * run, row["input_length"])
        total += row["input_length"]
        known.update(row["hash_ids"])
    assert found.reuse.block_tokens == 512
    assert found.reuse.hit_tokens_share == pytest.approx(hit / total)
    assert found.reuse.distinct == len(known)


def test_the_generator_is_close_to_the_aggregates_of_the_full_file() -> None:
    path = reference("burstgpt/BurstGPT_1.aggregates.json.gz")
    facts = json.loads(gzip.decompress(path.read_bytes()))
    log = synthesise(load_parameters(find("burstgpt-like").path), seed=1)
    tokens = log.prompt_tokens + log.output_tokens
    day = (log.arrival_s // 86400).astype(np.int64)
    assert np.bincount(day).tolist() == [each["req"] for each in facts["daily"]]
    hours = np.bincount((log.arrival_s // 3600).astype(np.int64) % 24) / len(facts["daily"])
    assert hours == pytest.approx([each["rph"] for each in facts["hourly_avg"]], rel=0.03)
    ratio = np.bincount(day, tokens) / [each["tok"] for each in facts["daily"]]
    assert float(np.median(ratio)) == pytest.approx(1.0, abs=0.02)
    assert tokens.sum() == pytest.approx(sum(each["tok"] for each in facts["daily"]), rel=0.02)
    minutes = np.bincount((log.arrival_s // 60).astype(np.int64), minlength=87840)
    assert (minutes[:10080] > 0).sum() == pytest.approx(len(facts["week1_min"]), rel=0.02)
    per_second = np.bincount((log.arrival_s // 60).astype(np.int64), tokens, minlength=87840) / 60
    busy = per_second[minutes > 0]
    assert busy.mean() == pytest.approx(facts["stats"]["mean_tps"], rel=0.1)
    assert np.percentile(busy, 99) == pytest.approx(facts["stats"]["p99_tps"], rel=0.1)
