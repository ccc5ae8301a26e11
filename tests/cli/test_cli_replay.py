"""`stowplan replay` and `stowplan batch` end to end: answers, files, and one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app

ON = ("--model", "llama-3.1-8b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128")
TRACE = "azure-2023-conversation-first-400"


def test_replay_prints_the_answer_and_writes_every_request(tmp_path: Path) -> None:
    target = tmp_path / "requests.csv"
    words = ["replay", TRACE, *ON, "--head", "60", "--slo", "ttft=1s,tpot=50ms", "-o", str(target)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "time to first token" in result.output
    assert "60 finished" in result.output
    assert len(target.read_text(encoding="utf-8").splitlines()) == 61


def test_replay_json_is_deterministic_and_conserves_requests() -> None:
    words = ["replay", TRACE, *ON, "--head", "100", "--scheduler", "continuous", "--json"]
    first, second = (CliRunner().invoke(app, words).output for _ in range(2))
    assert first == second
    answer = json.loads(first)
    assert answer["schema_version"] == "stowplan.replay/1"
    assert sum(answer["counts"].values()) == 100
    assert answer["ttft"]["percentiles"]["50"] <= answer["ttft"]["percentiles"]["99"] <= answer["e2e"]["largest"]


def test_a_faster_arrival_never_shortens_the_wait() -> None:
    def waited(rate: str) -> float:
        words = ["replay", TRACE, *ON, "--head", "100", "--rate", rate, "--json"]
        return float(json.loads(CliRunner().invoke(app, words).output)["ttft"]["mean"])

    assert waited("0.5") < waited("20")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["replay", "nosuch", *ON], "no trace is called 'nosuch'"),
        (["replay", TRACE], "--model MODEL --on MACHINE"),
        (["replay", TRACE, *ON, "--slo", "ttft=fast"], "objective"),
        (["replay", TRACE, *ON, "--step-overhead", "3"], "no unit"),
        (["replay", TRACE, *ON, "--plan", "x.json"], "leave out"),
        (["replay", TRACE, *ON, "-o", "requests.txt"], ".csv"),
        (["batch", "llama-3.1-8b", "--on", "rtx-4090-desktop-128", "--requests", "missing.csv"], "missing.csv"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output
