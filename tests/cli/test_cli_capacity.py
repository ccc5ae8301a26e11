"""`stowplan capacity` end to end, and what both commands that replay a trace print, compared with golden files.

Times in the golden files are made up, so that a new calibration changes nothing there. After a change of the wording,
run ``STOWPLAN_UPDATE_GOLDEN=1 pytest tests/cli`` and read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stowplan.cli.app import app
from stowplan.cli.replaying import capacity_answer, replay_answer
from stowplan.cli.served import Served
from stowplan.cli.tables import WIDTH
from stowplan.figures import Figures
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Place, PlacedLayers, Plan, Workload
from stowplan.serving.answers import parse_objective, summarise
from stowplan.serving.capacity import fewest_engines, highest_rate
from stowplan.serving.economics import Costs
from stowplan.serving.from_plan import Engine
from stowplan.serving.limits import Limits
from stowplan.serving.policies import Caching
from stowplan.serving.requests import Requests
from stowplan.serving.service import Service
from stowplan.serving.step_time import DecodePiece, StepTime
from stowplan.serving.tiers import Tier
from stowplan.systems.base import Setup
from stowplan.traces.conversations import with_conversations
from stowplan.traces.reading import load_trace

GOLDEN = Path(__file__).parent / "golden"
TRACE = "azure-2023-conversation-first-400"
SLO = "ttft=1s,tpot=50ms"
STEP_TIME = StepTime(
    ((1, 0.0085), (2, 0.0086), (512, 0.07), (2048, 0.26)),
    ((0, 0.0), (1, 2e-4), (128, 1e-3)),
    (DecodePiece(0.0, 1e-5, 1.5e-7),),
    (),
    largest_error=0.012,
)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def document(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_the_highest_rate_is_kept_when_it_is_replayed(plan: str) -> None:
    words = (TRACE, "--plan", plan, "--slo", "ttft=2s,tpot=100ms")
    found = document("capacity", *words)
    assert found["schema_version"] == "stowplan.capacity/1"
    assert found["attainment"] >= 0.99
    assert found["tried"][0]["rate"] == pytest.approx(load_trace(TRACE).rate)
    again = document("replay", *words, "--rate", repr(found["rate"]))
    assert again["attainment"] == found["attainment"] and again["ttft"] == found["ttft"]
    beyond = document("replay", *words, "--rate", repr(found["rate"] * 1.02))
    assert beyond["attainment"] < 0.99


def test_machines_are_counted_as_replays_of_them_say(plan: str) -> None:
    words = (TRACE, "--plan", plan, "--slo", "ttft=2s,tpot=100ms", "--rate", "20", "--conversations", "--seed", "4")
    found = document("capacity", *words, "--count-engines", "--kv-tier", "host=2GiB")
    assert found["rate"] == pytest.approx(20.0)
    assert found["engines"] > 1
    reached = {
        count: document("replay", *words, "--engines", str(count), "--kv-tier", "host=2GiB")["attainment"]
        for count in (found["engines"] - 1, found["engines"])
    }
    assert reached[found["engines"] - 1] < 0.99 <= reached[found["engines"]]


def test_a_burst_needs_machines_and_has_no_rate(plan: str) -> None:
    words = ("capacity", TRACE, "--plan", plan, "--head", "1", "--slo", "ttft=5s", "--count-engines")
    assert document(*words)["rate"] is None
    assert "needs      1 machine for all at once" in run(*words).output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--slo", "ttft=1us"], "however slowly they come"),
        (["--slo", "e2e=10h"], "even where all 40 requests arrive at once"),
        (["--slo", "ttft=1s", "--share", "nan"], "share"),
        (["--slo", "latency=1s"], "ttft, tpot and e2e"),
        (["--slo", "ttft=1s", "--count-engines", "--engines", "2"], "leave out --engines"),
        (["--slo", "ttft=10ms", "--count-engines", "--scheduler", "static"], "runs one engine only"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(words: list[str], told: str, plan: str) -> None:
    result = run("capacity", TRACE, "--head", "40", "--plan", plan, *words)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert result.output.startswith("stowplan: ") and result.output.count("\n") == 1


def test_an_interrupted_search_ends_quietly(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Service, "replay", interrupt)
    result = run("capacity", TRACE, "--head", "40", "--plan", plan, "--slo", "ttft=1s")
    assert result.exit_code == 130 and result.output == ""


def served(*, cached: bool = False, engines: int = 1) -> Served:
    """A made-up engine on a known machine."""
    places: dict[str, Place] = {"attention": "gpu0", "kv": "gpu0"}
    plan = Plan(
        system="llama.cpp",
        machine="rtx-4090-desktop-128",
        model="llama-3.1-8b",
        quant="q4_k_m",
        workload=Workload(prompt=512, generate=128),
        layers=[PlacedLayers(first=0, last=31, places=places)],
        embedding="ram",
        output="gpu0",
    )
    tiers = (
        Tier("host", 500, {"gpu0.h2d": 1e-4}, 1e-4),
        Tier("disk", 4000, {"disk.read": 3e-4, "gpu0.h2d": 1e-4}, 4e-4, 1e-4),
    )
    limits = Limits(kv_blocks=4000, max_running=128, max_batched_tokens=2048)
    service = Service(
        Engine(STEP_TIME, limits, 64_000), "chunked", Caching(tiers, "cost") if cached else None, engines=engines
    )
    setup = Setup(load_machine("rtx-4090-desktop-128"), load_model("llama-3.1-8b", "q4_k_m"), Figures({}))
    return Served(service, setup, plan)


def replay_lines() -> list[str]:
    trace, objective, by = load_trace("azure-2023-code-first-400"), parse_objective(SLO), served()
    done = by.service.replay(Requests.from_trace(trace))
    return replay_answer(by, trace, summarise(done, objective), Costs(9.36, 0.0261, 1.5), objective, done.scheduler)


def tiers_lines() -> list[str]:
    trace, by = with_conversations(load_trace("burstgpt-1-first-400"), seed=2).scaled_rate(8.0), served(cached=True)
    done = by.service.replay(Requests.from_trace(trace))
    return replay_answer(by, trace, summarise(done), Costs(None, None, None), None, done.scheduler)


def rate_lines() -> list[str]:
    trace, by = load_trace(TRACE), served()
    found = highest_rate(by.service, trace, parse_objective(SLO))
    return capacity_answer(by, trace, found, SLO, 0.99, counted=False)


def machines_lines() -> list[str]:
    trace, by = load_trace(TRACE).scaled_rate(40.0), served()
    found = fewest_engines(by.service, trace, parse_objective(SLO), share=0.95)
    return capacity_answer(by, trace, found, SLO, 0.95, counted=True)


ANSWERS: dict[str, Callable[[], list[str]]] = {
    "replay": replay_lines,
    "replay-tiers": tiers_lines,
    "capacity": rate_lines,
    "capacity-machines": machines_lines,
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_answer_reads_as_agreed(name: str) -> None:
    lines = ANSWERS[name]()
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("STOWPLAN_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert max(map(len, lines)) <= WIDTH
    assert text.isascii() and all(line == line.rstrip() for line in lines)
