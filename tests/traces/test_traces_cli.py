"""The commands of `stowplan traces`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stowplan.cli.traces import app
from stowplan.errors import InputError


def done(*words: str) -> str:
    """What a command prints to stdout."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_names_every_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOWPLAN_TRACES", str(tmp_path))
    assert "burstgpt-like" in done("list")
    entries = {each["name"]: each for each in json.loads(done("list", "--json"))}
    assert entries["burstgpt"]["kind"] == "download"
    assert not entries["burstgpt"]["here"]
    assert all(each["licence"] and each["attribution"] for each in entries.values())


def test_stats_for_people_programs_and_pages(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = done("stats", "burstgpt-1-first-400", "--html", str(page))
    assert "383 requests" in text
    assert "17 failed requests" in text
    assert all(len(line) <= 110 for line in text.splitlines())
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    document = json.loads(done("stats", "burstgpt-1-first-400", "--json", "--head", "50", "--from", "100"))
    assert document["schema_version"] == "stowplan.trace-statistics/1"
    assert document["requests"] == 50
    assert "400" in done("stats", "burstgpt-1-first-400", "--keep-failures")


def test_synth_writes_once_and_the_same(tmp_path: Path) -> None:
    words = ("--requests", "500", "--days", "3", "--seed", "7")
    for name in ("a.csv", "b.csv"):
        done("synth", str(tmp_path / name), *words)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text().count("\n") == 501
    with pytest.raises(InputError, match="there already"):
        done("synth", str(tmp_path / "a.csv"), *words)
    done("synth", str(tmp_path / "c.jsonl.gz"), *words, "--conversations")
    assert "were seen" in done("stats", str(tmp_path / "c.jsonl.gz"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stats", "nothing.csv"), "there is no such file"),
        (("stats", "nothing"), "no trace is called"),
        (("stats", "burstgpt-1-first-400", "--from", "1e9"), "no request is left"),
        (("fetch", "burstgpt-like"), "needs no download"),
        (("fetch", "burstgpt", "--url", "ftp://127.0.0.1/x"), "no http or https"),
        (("synth", "log.txt"), "ends in"),
        (("synth", "log.csv", "--parameters", "none.toml"), "none.toml: cannot be read"),
    ],
)
def test_wrong_words_get_a_sentence(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOWPLAN_TRACES", str(tmp_path))
    with pytest.raises(InputError, match=said):
        done(*words)
    assert list(tmp_path.iterdir()) == []
