"""`stowplan whatif`: answers, sweeps and break-even points on the command line; bad input ends in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from csv import DictReader
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stowplan.cli.app import app
from stowplan.cli.gallery import main as gallery
from stowplan.cli.gallery import questions
from stowplan.cli.tables import WIDTH
from stowplan.errors import InputError

SMALL = ["llama-3.1-8b", "--quant", "q4_k_m", "--on", "rtx-3060-desktop-32"]
SWEEP = ["--sweep", "gpu.memory=6GiB:12GiB:6GiB"]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["whatif", *words])


def refused(*words: str) -> str:
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("stowplan: ") or "Invalid value" in done.stderr
    assert "Traceback" not in done.output
    return done.stderr.strip()


def test_the_answer_fits_the_screen_and_starts_with_what_limits(tmp_path: Path) -> None:
    page = tmp_path / "answer.html"
    done = run(*SMALL, "--set", "gpu.memory=4GiB", "--html", str(page))
    assert done.exit_code == 0, done.output
    assert "Decode is limited by" in done.output
    assert "what would help" in done.output
    assert "one more unit of" in done.output
    assert max(len(line) for line in done.output.splitlines()) <= WIDTH
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "What each resource is worth" in text


def test_a_plan_file_is_asked_about_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made = CliRunner().invoke(app, ["plan", *SMALL, "--kv", "q8_0", "--context", "4096", "-o", str(path), "--json"])
    assert made.exit_code == 0, made.output
    told = json.loads(run(str(path), "--json").output)
    assert told["schema_version"] == "stowplan.whatif/1"
    planned = json.loads(made.output)
    assert told["plan"]["figures"]["decode_tokens_per_s"] == planned["decode_tokens_per_s"]
    assert dict(told["scenario"]["settings"])["cache_k"] == "q8_0"
    slower = json.loads(run(str(path), "--set", "gpu.bandwidth=100GB/s", "--sweep", "context=4096", "--json").output)
    assert slower["base"]["decode_tokens_per_s"] < 0.5 * planned["decode_tokens_per_s"]
    assert "change them with --set" in refused(str(path), "--quant", "q8_0")


def test_a_sweep_is_a_table_files_and_a_page(tmp_path: Path) -> None:
    csv, page, store = (tmp_path / name for name in ("s.csv", "s.html", "s.sqlite"))
    files = ["-o", str(csv), "--html", str(page), "--store", str(store)]
    done = run(*SMALL, *SWEEP, "--sweep", "context=2048,8192", *files)
    assert done.exit_code == 0, done.output
    assert "4 variants" in done.output and "12GiB" in done.output
    assert [row["context"] for row in DictReader(StringIO(csv.read_text()))] == ["2048", "8192"] * 2
    assert "Plotly.newPlot" in page.read_text(encoding="utf-8")
    told = json.loads(
        run(*SMALL, *SWEEP, "--paired", "--sweep", "context=2048,8192", "--store", str(store), "--json").output
    )
    assert [row["context"] for row in told["rows"]] == ["2048", "8192"]


def test_a_break_even_point() -> None:
    done = run(*SMALL, "--until", "decode=30", "--vary", "gpu.bandwidth=100GB/s:800GB/s")
    assert done.exit_code == 0, done.output
    assert "A decode of 30.0 tok/s takes gpu.bandwidth=" in done.output
    told = json.loads(run(*SMALL, "--until", "decode=1e5", "--vary", "gpu.memory", "--json").output)
    assert told["value"] is None
    assert "reaches a decode" in run(*SMALL, "--until", "decode=1e5", "--vary", "gpu.memory").output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SMALL, "--sweep", "gpu.memroy=1GiB,2GiB"], "nearest: gpu.memory"),
        ([*SMALL, "--sweep", "gpu.memory=1GiB:4GB/s:1GiB"], "GB/s"),
        ([*SMALL, "--sweep", "gpu.memory=,"], "names no value"),
        ([*SMALL, *SWEEP, *SWEEP], "swept twice"),
        ([*SMALL, *SWEEP, "--sweep", "context=1024,2048,4096", "--paired"], "as many values"),
        ([*SMALL, *SWEEP, "--front", "speed"], "no wish is called 'speed'"),
        ([*SMALL, "--sweep", "context=1000:100000:10"], "say --yes"),
        ([*SMALL, "--sweep", "context=1:16000000:1", "--yes"], "at most"),
        ([*SMALL, *SWEEP, "--until", "decode=3", "--vary", "context"], "two questions"),
        ([*SMALL, "--until", "decode=3"], "--vary"),
        ([*SMALL, "-o", "a.csv"], "belong to a sweep"),
        ([*SMALL, *SWEEP, "-o", "a.xlsx"], "must end in .csv"),
        ([*SMALL, *SWEEP, "--cluster", "spark://a:1"], "give dask://host:port"),
        (["llama-3.1-8b"], "--on MACHINE is missing"),
        (["llama-3.1-8bb", "--on", "t4-16"], "nearest: llama-3.1-8b"),
        (["no.json"], "cannot be read"),
        ([*SMALL, "--set", "gpu.memory=24"], "no unit"),
        ([*SMALL, "--set", "objective=speed"], "request, decode"),
        ([*SMALL, "--set", "engine.ubatch=many"], "whole number"),
        (["deepseek-v3", "--on", "t4-16"], "needs"),
    ],
)
def test_bad_input_ends_in_one_sentence(words: Sequence[str], said: str) -> None:
    assert said in " ".join(refused(*words).split())


def test_an_unreachable_cluster_is_told() -> None:
    told = refused(*SMALL, *SWEEP, "--cluster", "dask://127.0.0.1:9")
    assert "nobody answers there" in told or "pip install 'stowplan[dask]'" in told


def test_nothing_is_half_written(tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    out.write_text("mine")
    refused(*SMALL, "--sweep", "gpu.memory=6GiB,7", "-o", str(out))
    assert out.read_text() == "mine"


def test_the_gallery_holds_worked_questions(tmp_path: Path) -> None:
    listed = questions()
    assert len(listed) >= 8
    assert len({question.name for question in listed}) == len(listed)
    assert sum(question.source is not None for question in listed) >= 3
    gallery(["-o", str(tmp_path / "shown"), "more-ram-for-a-3090"])
    text = (tmp_path / "shown" / "index.html").read_text(encoding="utf-8")
    assert "will more RAM help?" in text and "4 variants" in text
    assert (tmp_path / "shown" / "more-ram-for-a-3090.html").stat().st_size > 100_000
    with pytest.raises(InputError, match="lanes-for-two-gpus"):
        gallery(["-o", str(tmp_path), "no-such"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [question.name for question in questions()])
def test_every_question_of_the_gallery_is_answered(name: str, tmp_path: Path) -> None:
    gallery(["-o", str(tmp_path), name])
    assert "no plan" not in (tmp_path / "index.html").read_text(encoding="utf-8")
