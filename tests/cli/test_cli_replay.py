"""`stowplan replay` and `stowplan batch` end to end: answers, files, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stowplan.cli.app import app
from stowplan.cli.tables import WIDTH
from stowplan.report import replay_page as page_module
from stowplan.serving import answers as answers_module
from stowplan.serving.service import Service
from stowplan.traces.catalogue import find
from stowplan.traces.reading import load_trace

ON = ("--model", "llama-3.1-8b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128")
VLLM = ("--engine", "vllm", "--model", "llama-3.1-8b", "--quant", "f16", "--on", "h100-sxm")
TRACE = "azure-2023-conversation-first-400"
MOONCAKE = Path(__file__).resolve().parents[2].parent / "shared/data/traces/mooncake/conversation_trace.jsonl.gz"
EXCERPTS = {
    "burstgpt-1-first-400": ("Request tokens", "Response tokens"),
    "burstgpt-3-first-400": ("Request tokens", "Response tokens"),
    "azure-2023-code-first-400": ("ContextTokens", "GeneratedTokens"),
    "azure-2023-conversation-first-400": ("ContextTokens", "GeneratedTokens"),
}
Replay = Callable[..., dict[str, Any]]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module")
def replayed(plan: str) -> Replay:
    """The document of a replay of the plan."""

    def found(*words: str) -> dict[str, Any]:
        result = run("replay", *words, "--plan", plan, "--json")
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.output)
        return document

    return found


@pytest.fixture(scope="module")
def mooncake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first 600 rows of the real file."""
    if not MOONCAKE.exists():
        pytest.skip("the Mooncake trace is not at hand")
    path = tmp_path_factory.mktemp("mooncake") / "conversation.jsonl"
    with gzip.open(MOONCAKE, "rt", encoding="utf-8") as file:
        path.write_text("".join(islice(file, 600)), encoding="utf-8")
    return str(path)


def test_replay_prints_the_answer_and_writes_every_request(tmp_path: Path) -> None:
    target = tmp_path / "requests.csv"
    words = ["replay", TRACE, *ON, "--head", "60", "--slo", "ttft=1s,tpot=50ms", "-o", str(target)]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "time to first token" in result.output
    assert "60 finished" in result.output
    assert len(target.read_text(encoding="utf-8").splitlines()) == 61
    assert max(map(len, result.output.splitlines())) <= WIDTH


def test_replay_json_is_deterministic_and_conserves_requests(replayed: Replay) -> None:
    words = (TRACE, "--head", "100", "--scheduler", "continuous", "--conversations", "--kv-tier", "host=2GiB")
    answer = replayed(*words)
    assert answer == replayed(*words)
    assert answer["schema_version"] == "stowplan.replay/1"
    assert sum(answer["counts"].values()) == 100
    assert answer["ttft"]["percentiles"]["50"] <= answer["ttft"]["percentiles"]["99"] <= answer["e2e"]["largest"]


@pytest.mark.parametrize("name", EXCERPTS)
def test_excerpts_are_replayed_to_the_last_token(name: str, plan: str, tmp_path: Path) -> None:
    """Against the rows of the file itself, read by the csv module."""
    target = tmp_path / "requests.csv"
    result = run("replay", name, "--plan", plan, "-o", str(target), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    with find(name).path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    prompt, output = EXCERPTS[name]
    good = [row for row in rows if int(row[output]) > 0]
    assert len(rows) == 400
    assert answer["counts"]["finished"] == len(good) == answer["e2e"]["count"]
    with target.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    for column, source in (("prompt_tokens", prompt), ("output_tokens", output), ("made_tokens", output)):
        assert [int(row[column]) for row in written] == [int(row[source]) for row in good]
    assert all(
        float(row["arrival_s"]) <= float(row["started_s"]) < float(row["first_token_s"]) <= float(row["finished_s"])
        for row in written
    )
    spent = sum(int(row[output]) for row in good)
    assert answer["output_tokens_per_s"] * answer["span_s"] == pytest.approx(spent)


def test_mooncake_finds_prompts_in_every_tier(mooncake: str, replayed: Replay) -> None:
    tiers = [word for place in ("host=1GiB", "disk=2GB", "remote=1TB@25GB/s+1ms") for word in ("--kv-tier", place)]
    cut = (mooncake, "--between", "0s,180s", "--rate", "1")
    plain, cached, tiered = (replayed(*cut, *words) for words in ((), ("--prefix-cache",), tiers))
    assert plain["hit_rate"] is None and plain["hits"] == {}
    assert list(cached["hits"]) == ["gpu"] and list(tiered["hits"]) == ["gpu", "host", "disk", "remote"]
    assert 0.0 < cached["hit_rate"] < tiered["hit_rate"] == pytest.approx(sum(tiered["hits"].values()))
    assert tiered["ttft"]["mean"] < cached["ttft"]["mean"] < plain["ttft"]["mean"]


def test_vllm_has_its_own_scheduler_and_cache(mooncake: str) -> None:
    result = run("replay", mooncake, *VLLM, "--head", "150", "--slo", "ttft=5s,tpot=100ms", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["system"], answer["scheduler"], answer["scheduled_ahead"]) == ("vllm", "chunked", True)
    assert answer["counts"]["finished"] == 150
    assert 0.0 < answer["hit_rate"] < 1.0
    apart = run("replay", mooncake, *VLLM, "--head", "150", "--prompt-engines", "1", "--handover", "50GB/s", "--json")
    assert apart.exit_code == 0, apart.output
    answer = json.loads(apart.output)
    assert (answer["engines"], answer["hit_rate"], answer["scheduled_ahead"]) == (2, None, True)


def test_vllm_takes_sequences_and_tokens_from_the_options() -> None:
    words = ("replay", TRACE, *VLLM, "--speed", "20", "--json")
    free, narrow = (json.loads(run(*words, *more).output) for more in ((), ("--max-running", "4", "--budget", "512")))
    assert narrow["queue"]["mean"] > 2 * free["queue"]["mean"]
    assert narrow["mean_tokens"] < free["mean_tokens"]


def test_more_machines_serve_more(replayed: Replay) -> None:
    words = (TRACE, "--speed", "6")
    one = replayed(*words)
    for more in (
        ("--router", "round-robin"),
        ("--migrate",),
        ("--router", "prefix", "--conversations", "--prefix-cache"),
    ):
        three = replayed(*words, "--engines", "3", *more)
        assert three["engines"] == 3 and three["counts"] == one["counts"]
        assert three["requests_per_s"] > one["requests_per_s"]
        assert three["e2e"]["mean"] < one["e2e"]["mean"]


def test_prompts_apart_pay_for_the_handover(replayed: Replay) -> None:
    fast, slow = (
        replayed(TRACE, "--head", "150", "--prompt-engines", "1", "--handover", rate) for rate in ("50GB/s", "50MB/s")
    )
    assert fast["engines"] == slow["engines"] == 2
    assert fast["counts"]["finished"] == slow["counts"]["finished"] == 150
    assert fast["ttft"]["mean"] == pytest.approx(slow["ttft"]["mean"])
    assert fast["e2e"]["mean"] < slow["e2e"]["mean"]


def test_impatient_clients_and_full_queues(replayed: Replay) -> None:
    counts = replayed(TRACE, "--speed", "10", "--timeout", "20s")["counts"]
    assert counts["timed_out"] > 0 and sum(counts.values()) == 400
    counts = replayed(TRACE, "--speed", "10", "--max-waiting", "3", "--max-running", "8")["counts"]
    assert counts["refused"] > 0 and sum(counts.values()) == 400


def test_every_scheduler_serves_everybody(replayed: Replay) -> None:
    means = {}
    for name in ("static", "shortest", "fair"):
        answer = replayed(TRACE, "--speed", "2", "--head", "200", "--scheduler", name, "--max-running", "16")
        assert answer["counts"]["finished"] == 200
        assert answer["scheduler"] == name
        means[name] = answer["e2e"]["mean"]
    assert means["static"] > max(means["shortest"], means["fair"])


def test_a_trace_is_cut_scaled_and_drawn_anew(replayed: Replay) -> None:
    whole = load_trace(TRACE)
    cut = replayed(TRACE, "--between", "10s,1min", "--head", "20", "--rate", "2")
    assert sum(cut["counts"].values()) == min(20, len(whole.slice(10.0, 60.0)))
    assert "arrivals from 10 s to 60 s; the first 20 requests; scaled to 2 requests/s" in cut["origin"]
    drawn = [replayed(TRACE, "--resample", "30", "--seed", str(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] and drawn[0]["ttft"] != drawn[2]["ttft"]


def test_lengths_without_arrivals_come_at_once_or_at_a_rate(tmp_path: Path, replayed: Replay, plan: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "74,18\n900,33\n" * 40, encoding="utf-8")
    assert "all at once" in run("replay", str(path), "--plan", plan).output
    answer = replayed(str(path), "--rate", "5", "--seed", "3")
    assert "synthetic Poisson" in answer["origin"] and "seed 3" in answer["origin"]
    assert answer["span_s"] > 10.0


def test_bad_rows_are_left_out_and_counted_where_asked(tmp_path: Path, plan: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,nan,5\n2,100,5\n", encoding="utf-8")
    refused = run("replay", str(path), "--plan", plan)
    assert refused.exit_code == 2 and "rows.csv:3: prompt tokens is nan" in refused.output
    kept = run("replay", str(path), "--plan", plan, "--skip-bad")
    assert kept.exit_code == 0 and "left out: 1 not a finite number" in kept.output
    assert "2 finished" in kept.output


def test_the_page_and_the_file_say_the_same(tmp_path: Path, plan: str) -> None:
    page, table = tmp_path / "replay.html", tmp_path / "requests.csv"
    words = ("replay", TRACE, "--plan", plan, "--conversations", "--kv-tier", "host=1GiB")
    result = run(*words, "--html", str(page), "-o", str(table))
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "400 finished" in text and "400 finished" in result.output
    for line in result.output.splitlines():
        if line.startswith("  time to first token"):
            assert all(f">{cell}<" in text for cell in line[24:].split("  ") if cell.strip() == cell and cell)
    first = page.read_bytes(), table.read_bytes()
    run(*words, "--html", str(page), "-o", str(table))
    assert (page.read_bytes(), table.read_bytes()) == first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["replay.html", "requests.csv"]


def test_rent_and_electricity(replayed: Replay) -> None:
    owned, powered, rented = (
        replayed(TRACE, "--head", "100", *words)["costs"]
        for words in ((), ("--electricity", "0.30"), ("--rent", "2.50"))
    )
    assert powered["usd_per_million"] > owned["usd_per_million"] > 0.0
    assert rented["usd_per_million"] > powered["usd_per_million"]
    assert owned["kwh"] == powered["kwh"] == rented["kwh"]


def _interrupt(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Service, "replay"), (page_module, "replay_page"), (answers_module, "_lines")],
)
def test_an_interrupted_replay_leaves_no_file(
    owner: object, name: str, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, _interrupt)
    target = tmp_path / "out"
    target.mkdir()
    words = ("--head", "20", "-o", str(target / "r.csv"), "--html", str(target / "r.html"))
    result = run("replay", TRACE, "--plan", plan, *words)
    assert result.exit_code == 130
    assert list(target.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_sentence(plan: str, tmp_path: Path) -> None:
    (tmp_path / "taken.csv").mkdir()
    words = ("replay", TRACE, "--plan", plan, "--head", "20", "--html", str(tmp_path / "r.html"))
    result = run(*words, "-o", str(tmp_path / "taken.csv"))
    assert result.exit_code == 2 and "taken.csv: cannot be written" in result.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.csv"]
    assert list((tmp_path / "taken.csv").iterdir()) == []


def test_a_plan_says_what_runs_it(plan: str) -> None:
    assert "leave out --engine" in run("replay", TRACE, "--plan", plan, "--engine", "vllm").output
    assert "leave out --model" in run("replay", TRACE, "--plan", plan, "--on", "h100-sxm").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["replay", "nosuch", *ON], "no trace is called 'nosuch'"),
        (["replay", "n" * 5000, *ON], "no trace is called"),
        (["replay", ".", *ON], "is a folder"),
        (["replay", TRACE], "--model MODEL --on MACHINE"),
        (["replay", TRACE, *ON, "--slo", "ttft=fast"], "objective"),
        (["replay", TRACE, *ON, "--slo", "ttft=1s,ttft=2s"], "at most once"),
        (["replay", TRACE, *ON, "--step-overhead", "3"], "no unit"),
        (["replay", TRACE, *ON, "--plan", "x.json"], "leave out"),
        (["replay", TRACE, *ON, "-o", "requests.txt"], ".csv"),
        (["replay", TRACE, *ON, "--html", "nowhere/page.html"], "does not exist"),
        (["replay", TRACE, *ON, "--speed", "2", "--rate", "3"], "give one of them"),
        (["replay", TRACE, *ON, "--speed", "0"], "factor above 0"),
        (["replay", TRACE, *ON, "--speed", "nan"], "factor above 0"),
        (["replay", TRACE, *ON, "--rate", "-1"], "rate above 0"),
        (["replay", TRACE, *ON, "--rate", "1e-300"], "not a finite number"),
        (["replay", TRACE, *ON, "--between", "1h"], "give two moments"),
        (["replay", TRACE, *ON, "--between", "2h,1h"], "no request is left"),
        (["replay", TRACE, *ON, "--resample", "3", "--seed", "-1"], "--seed"),
        (["replay", TRACE, *ON, "--budget", "64"], "128 running requests"),
        (["replay", TRACE, *ON, "--timeout", "0s"], "waits no time"),
        (["batch", "llama-3.1-8b", "--on", "rtx-4090-desktop-128", "--requests", "missing.csv"], "missing.csv"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], told: str) -> None:
    assert_refused(run(*words), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prefix-cache"], "add --conversations"),
        (["--conversations", "--scheduler", "static", "--prefix-cache"], "knows no prefix cache"),
        (["--scheduler", "fair", "--timeout", "5s"], "knows no prefix cache, queue limit or time-out"),
        (["--conversations", "--kv-tier", "tape=1GB"], "is not a place"),
        (["--conversations", "--kv-tier", "host=1GB", "--kv-tier", "host=2GB"], "'host' is given twice"),
        (["--conversations", "--kv-tier", "host=1TB"], "is more than the"),
        (["--conversations", "--kv-tier", "disk=90TB"], "holds"),
        (["--conversations", "--kv-tier", "host=1kB"], "less than one block"),
        (["--prompt-engines", "1", "--handover", "0GB/s"], "rate above 0"),
        (["--rent", "-1"], "not negative"),
        (["--rent", "1", "--electricity", "1"], "leave out --rent or --electricity"),
    ],
)
def test_what_the_plan_cannot_do_is_one_sentence(words: list[str], told: str, plan: str, tmp_path: Path) -> None:
    target = tmp_path / "r.csv"
    assert_refused(run("replay", TRACE, "--head", "20", "--plan", plan, *words, "-o", str(target)), told)
    assert not target.exists()


def test_the_conversations_of_a_trace_find_their_own_beginnings(plan: str, replayed: Replay) -> None:
    result = run("replay", "burstgpt-3-first-400", "--plan", plan, "--prefix-cache")
    assert_refused(result, "--conversations")
    found = replayed("burstgpt-3-first-400", "--prefix-cache", "--conversations")
    assert "prefixes in its conversations" in found["origin"]
    assert found["hit_rate"] > 0.1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--conversations", "--kv-tier", "host=100TB"], "is more than the"),
        (["--eviction", "cost"], "does not say which prompts begin alike"),
        (["--engines", "2", "--router", "prefix"], "does not say which prompts begin alike"),
        (["--block-size", "24"], "--block-size 24: vLLM 0.15 and later has blocks of 16, 32, 64, 128 or 256 tokens"),
        (["--budget", "200"], "256 running requests"),
    ],
)
def test_what_vllm_decides_itself_is_one_sentence(words: list[str], told: str) -> None:
    assert_refused(run("replay", TRACE, "--head", "20", *VLLM, *words), told)


def test_a_model_that_does_not_fit_is_one_sentence() -> None:
    words = ("--engine", "vllm", "--model", "llama-3.3-70b", "--quant", "f16", "--on", "rtx-3060-desktop-32")
    assert_refused(run("replay", TRACE, "--head", "20", *words), "no room for Llama 3.3 70B")


PLAIN = b"arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,b,c\n1,2,3\n", "t.csv:1: the columns 'a,b,c' are of no known trace"),
        (PLAIN + b"0,nan,1\n", "t.csv:2: prompt tokens is nan"),
        (PLAIN + b"-1,5,1\n", "t.csv:2: arrival is -1"),
        (PLAIN + b"1e300,5,1\n", "t.csv:2: arrival is 1e+300, which is too large"),
        (PLAIN + b"0,0,1\n", "t.csv:2: the prompt has no tokens"),
        (PLAIN + b"0,5,1\n\x00\x01\xff\n", "t.csv:3: the line holds a zero byte"),
        (b"\x7fELF\x02\x01\x01" + bytes(5000), "zero byte"),
        (b"\x1f\x8b" + b"junk" * 100, "damaged gzip"),
        (gzip.compress(PLAIN + b"0,5,1\n" * 1000, mtime=0)[:-12], "damaged gzip"),
        (b"", "is empty"),
        (
            b"arrival_s,prompt_tokens,output_tokens,prefix_hashes\n0,8,1,1\n0,24,1,1 2 3 4 5\n",
            "the numbers of hashes fit no block size",
        ),
    ],
)
def test_bad_traces_are_one_sentence(content: bytes, told: str, plan: str, tmp_path: Path) -> None:
    path, target = tmp_path / "t.csv", tmp_path / "r.csv"
    path.write_bytes(content)
    words = ("--prefix-cache",) if b"hashes" in content else ()
    assert_refused(run("replay", str(path), "--plan", plan, *words, "-o", str(target)), told)
    assert not target.exists()


def test_unsorted_rows_are_sorted_and_told(plan: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(PLAIN + b"5,50,3\n3,60,4\n9,70,5\n")
    result = run("replay", str(path), "--plan", plan)
    assert result.exit_code == 0
    assert "1 row came after a later one" in " ".join(result.output.split())


def test_a_line_without_end_takes_bounded_memory(plan: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.write(PLAIN + b"0,5,1\n")
        for _ in range(96):
            file.write(b"7" * 2**20)
    tracemalloc.start()
    try:
        result = run("replay", str(path), "--plan", plan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_refused(result, "t.csv:3: the line is longer than")
    assert peak < 48 * 2**20


@pytest.mark.parametrize(("begin", "line"), [(b"", 1), (PLAIN + b"0,5,1\n", 3)])
def test_a_line_of_ten_gigabytes_is_told_at_once(begin: bytes, line: int, plan: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(begin)
    with path.open("r+b") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room, and reads as zeros
    assert_refused(run("replay", str(path), "--plan", plan), f"t.csv:{line}: the line is longer than 8 MiB")


def test_requests_that_all_failed_are_told_with_their_file(plan: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(PLAIN + b"0,5,0\n")
    assert_refused(run("replay", str(path), "--plan", plan), "t.csv: holds no request (left out: 1 failed requests")


def assert_refused(result: Result, told: str) -> None:
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    if "Usage:" not in result.output:
        assert result.output.startswith("stowplan: ") and result.output.count("\n") == 1


@pytest.mark.slow
def test_all_of_mooncake_is_replayed_to_the_last_token() -> None:
    if not MOONCAKE.exists():
        pytest.skip("the Mooncake trace is not at hand")
    with gzip.open(MOONCAKE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tiers = ("--kv-tier", "host=256GiB", "--kv-tier", "disk=1TB")
    result = run("replay", str(MOONCAKE), *VLLM, *tiers, "--engines", "4", "--router", "prefix", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert answer["counts"]["finished"] == len(rows) == 12031
    prompts, outputs = (sum(row[name] for row in rows) for name in ("input_length", "output_length"))
    assert answer["prompt_tokens_per_s"] * answer["span_s"] == pytest.approx(prompts)
    assert answer["output_tokens_per_s"] * answer["span_s"] == pytest.approx(outputs)
    assert answer["hit_rate"] > 0.1
