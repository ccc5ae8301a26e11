"""Both commands that replay traces take the same service, and options that would change nothing are told."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from stowplan.cli.app import app
from stowplan.cli.serving_options import ServiceOptions, TraceOptions

TRACE = "azure-2023-conversation-first-400"
ON = ("--model", "llama-3.1-8b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128")
VLLM = ("--engine", "vllm", "--model", "llama-3.1-8b", "--quant", "f16", "--on", "h100-sxm")
APART = ("--prompt-engines", "1", "--handover", "1GB/s")
SLO = ("--slo", "ttft=2s,tpot=100ms")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def document(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def assert_refused(result: Result, told: str) -> None:
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert result.output.startswith("stowplan: ") and result.output.count("\n") == 1


def test_both_commands_have_every_option_of_trace_and_service() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    names = {field.name for kind in (TraceOptions, ServiceOptions) for field in fields(kind)}
    told: dict[str, list[str]] = {}
    for command in ("replay", "capacity"):
        shared = {each.name: each for each in commands[command].params if each.name in names}
        assert set(shared) == names
        told[command] = [f"{each.opts} {each.default} {each.required} {each.help}" for each in shared.values()]
    assert told["replay"] == told["capacity"]


NOTHING_CHANGES = [
    (ON, ["--router", "round-robin"], "--router: chooses among engines, and there is one"),
    (ON, ["--router", "least-loaded", "--engines", "1"], "--router: chooses among engines, and there is one"),
    (ON, ["--router", "prefix", "--engines", "2"], "--router prefix: looks at the engines' prefix caches"),
    (ON, ["--eviction", "cost"], "--eviction: says which blocks a prefix cache lets go, and there is none"),
    (ON, ["--eviction", "lru", "--engines", "2"], "--eviction: says which blocks"),
    (ON, ["--migrate"], "--migrate: sequences can only move where there are two engines or more"),
    (ON, ["--handover", "50GB/s"], "--handover: says how fast prompt engines hand over; give --prompt-engines too"),
    (ON, ["--conversations"], "--conversations: change nothing without a prefix cache"),
    (ON, ["--conversations", "--scheduler", "shortest"], "--conversations: change nothing without a prefix cache"),
    (ON, ["--block-size", "32"], "--block-size: only vLLM's cache has blocks"),
    (ON, ["--speed", "2", "--rate", "3"], "give one of them"),
    (ON, ["--prompt-engines", "1"], "--prompt-engines: needs the rate at which caches are handed over"),
    (ON, [*APART, "--scheduler", "fair"], "--scheduler: prompt engines take whole prompts"),
    (ON, [*APART, "--prefix-cache"], "--prompt-engines: work without --prefix-cache"),
    (ON, [*APART, "--kv-tier", "host=1GiB"], "--prompt-engines: work without --prefix-cache"),
    (ON, [*APART, "--engines", "2", "--migrate"], "--prompt-engines: work without --prefix-cache"),
    (ON, [*APART, "--timeout", "1s"], "know no --max-waiting and no --timeout"),
    (ON, [*APART, "--max-waiting", "9"], "know no --max-waiting and no --timeout"),
    (ON, [*APART, "--engines", "2", "--router", "round-robin"], "--router: where prompt engines serve"),
    (ON, [*APART, "--eviction", "cost"], "--eviction: says which blocks"),
    (ON, [*APART, "--conversations"], "--conversations: change nothing"),
    (VLLM, [*APART, "--conversations"], "--conversations: change nothing"),
    (VLLM, [*APART, "--eviction", "lru"], "--eviction: says which blocks"),
    (VLLM, ["--scheduler", "chunked"], "--scheduler: vLLM has its own"),
    (VLLM, ["--step-overhead", "1ms"], "--step-overhead: is part of what is known of vLLM"),
    (VLLM, ["--router", "prefix"], "--router: chooses among engines, and there is one"),
    (VLLM, ["--migrate"], "--migrate: sequences can only move"),
]


@pytest.mark.parametrize("command", ["replay", "capacity"])
@pytest.mark.parametrize(("service", "words", "told"), NOTHING_CHANGES)
def test_options_that_would_change_nothing_are_one_sentence(
    command: str, service: tuple[str, ...], words: list[str], told: str
) -> None:
    asked = SLO if command == "capacity" else ()
    assert_refused(run(command, TRACE, "--head", "5", *service, *words, *asked), told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--count-engines", "--engines", "2"], "leave out --engines"),
        (["--count-engines", *APART], "--count-engines: counts machines that do everything"),
        (["--rate", "3"], "--rate: the search finds the rate"),
        (["--speed", "3"], "--speed: the search finds the rate"),
    ],
)
def test_what_a_search_finds_itself_is_one_sentence(words: list[str], told: str) -> None:
    assert_refused(run("capacity", TRACE, "--head", "5", *ON, *SLO, *words), told)


def test_a_plan_of_a_vllm_without_prefix_cache_is_told(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    planned = run("plan", "llama-3.1-8b", "--quant", "f16", "--on", "h100-sxm", "--system", "vllm", "-o", str(path))
    assert planned.exit_code == 0, planned.output
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["settings"]["engine"] = "vllm-v0"
    path.write_text(json.dumps(plan), encoding="utf-8")
    for words in (["--conversations", "--prefix-cache"], ["--kv-tier", "host=1GiB"]):
        assert_refused(run("replay", TRACE, "--plan", str(path), *words), "has no prefix cache; leave them out")
    assert_refused(run("replay", TRACE, "--plan", str(path), "--block-size", "64"), "has blocks of 8, 16 or 32 tokens")
    assert document("replay", TRACE, "--head", "20", "--plan", str(path), "--block-size", "8")["hit_rate"] is None


def test_a_search_takes_what_only_several_engines_have(plan: str) -> None:
    """The number of engines is open while it is looked for, so that routers and migration mean something."""
    words = (TRACE, "--plan", plan, "--head", "80", "--rate", "30", "--slo", "ttft=1s", "--count-engines")
    for more in (("--router", "round-robin"), ("--migrate",)):
        found = document("capacity", *words, *more)
        again = document(
            "replay", *words[:-1], "--engines", str(found["engines"]), *(more if found["engines"] > 1 else ())
        )
        assert found["attainment"] == again["attainment"] >= 0.99


def test_a_search_takes_queues_tiers_and_prompt_engines(plan: str) -> None:
    cached = ("--conversations", "--kv-tier", "host=2GiB", "--eviction", "cost", "--max-waiting", "40")
    for more in (cached, ("--prompt-engines", "1", "--handover", "20GB/s")):
        words = (TRACE, "--plan", plan, "--head", "100", *more, *SLO)
        found = document("capacity", *words)
        again = document("replay", *words, "--rate", repr(found["rate"]))
        assert found["attainment"] == again["attainment"]
        assert found["engines"] == again["engines"]


def test_a_rate_gives_lengths_without_arrivals_their_first_rate(tmp_path: Path, plan: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "74,18\n900,33\n" * 40, encoding="utf-8")
    assert_refused(run("capacity", str(path), "--plan", plan, *SLO), "no rate to search")
    assert document("capacity", str(path), "--plan", plan, *SLO, "--rate", "5")["rate"] > 0.0


@pytest.mark.parametrize("engines", [1, 3])
def test_vllm_schedules_ahead_on_any_number_of_machines(engines: int) -> None:
    words = ("replay", TRACE, *VLLM, "--head", "60", "--engines", str(engines))
    assert document(*words)["scheduled_ahead"] is True
    assert "one step ahead" in run(*words).output


def test_blocks_of_other_sizes_find_the_same_beginnings_more_coarsely(tmp_path: Path) -> None:
    """Prompts that share 160 of 200 tokens, hashed by 32: whole blocks of the engine's size are found."""
    path = tmp_path / "t.jsonl"
    rows = [
        {
            "arrival_s": 20.0 * i,
            "prompt_tokens": 200,
            "output_tokens": 4,
            "prefix_hashes": [1, 2, 3, 4, 5, 100 + i, 200 + i],
        }
        for i in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shares = {}
    for size in (16, 64, 256):
        shares[size] = document("replay", str(path), *VLLM, "--block-size", str(size))["hit_rate"]
    expected = {16: 160, 64: 128, 256: 0}
    assert shares == {size: pytest.approx(0.9 * tokens / 200) for size, tokens in expected.items()}
