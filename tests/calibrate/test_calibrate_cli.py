"""`stowplan calibrate` from the outside: runs, resumes, shows, compares, merges, fits; what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.calibrate.random_gguf import llama_facts, write_random_gguf
from typer.testing import CliRunner, Result

from stowplan.cli.app import app
from stowplan_calibrate.host import memory
from stowplan_calibrate.page import results_page
from stowplan_calibrate.results import read_results

RECORDED = Path(__file__).parent / "recorded"
PROFILE = str(RECORDED / "profile-epyc.toml")


def call(*words: str, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, ["calibrate", *words])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module", autouse=True)
def small_arrays() -> Iterator[None]:
    """Figures do not matter here, so the arrays are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_MOST_BYTES", 2**22)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a short run has filled."""
    folder = tmp_path_factory.mktemp("calibration")
    told = call("run", "--quick", "--only", "cpu", "--budget", "0.2 s", "-o", str(folder), "--on", "cpu-laptop-32")
    assert "points in" in told
    assert f"--on {folder}/profile.toml" in told.replace("\n  ", "")
    return folder


def test_a_run_makes_a_profile_that_plans_rest_on(measured: Path) -> None:
    words = ["plan", "llama-3.2-1b", "--quant", "q4_k_m", "--on", str(measured / "profile.toml"), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    prediction = json.loads(result.output)["prediction"]
    kinds = {rest["name"]: rest["kind"] for rest in prediction["rests_on"]}
    assert kinds["host.clock"] == "measured"


def test_the_same_run_again_measures_nothing(measured: Path) -> None:
    before = (measured / "measurements.jsonl").read_bytes()
    told = call("run", "--quick", "--only", "cpu", "--budget", "0.2 s", "-o", str(measured), "--on", "cpu-laptop-32")
    assert "that were there already" in told
    kept = (measured / "measurements.jsonl").read_bytes()
    assert kept.startswith(before)
    assert b'"kind":"record"' not in kept[len(before) :]


def test_results_and_profile_are_shown(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = call("show", str(measured), "--html", str(page))
    assert "host.read" in told
    rows = json.loads(call("show", str(measured), "--json"))
    assert all(row["samples"] and row["seconds"] > 0 for row in rows)
    assert "measured" in call("show", str(measured / "profile.toml"))
    numbers = json.loads(call("show", str(measured / "profile.toml"), "--json"))
    assert numbers[0]["source"] == "measured"
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "Roofline of the host" in text
    assert "http://" not in text.split("<script>")[0]


def test_the_page_is_the_same_for_the_same_results(measured: Path) -> None:
    results = read_results(measured)
    assert results_page(results) == results_page(results)


def test_two_profiles_are_compared_and_merged(measured: Path, tmp_path: Path) -> None:
    mine = str(measured / "profile.toml")
    assert "same numbers" in call("compare", mine, mine)
    rows = json.loads(call("compare", mine, PROFILE, "--json"))
    assert {"path", "first", "second", "ratio", "beyond_noise"} <= rows[0].keys()
    both = tmp_path / "both.toml"
    call("merge", PROFILE, mine, "-o", str(both))
    document = tomllib.loads(both.read_text())
    assert document["cpu"] == tomllib.loads(Path(PROFILE).read_text())["cpu"]


def few_rows(folder: Path) -> Path:
    """Four recorded rows of one small model, its file's header beside them."""
    facts = llama_facts("s125m", hidden=768, layers=12, heads=12, kv_heads=4, ffn=2048)
    write_random_gguf(folder / "s125m-q8_0.gguf", facts, "q8_0", holes=True)
    lines = (RECORDED / "llama-bench-epyc.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if "s125m-q8_0" in line]
    log = folder / "log.jsonl"
    log.write_text(
        "".join(json.dumps(row | {"model_filename": str(folder / "s125m-q8_0.gguf")}) + "\n" for row in rows)
    )
    return log


def test_a_fit_is_written_into_the_profile(tmp_path: Path) -> None:
    log, out = few_rows(tmp_path), tmp_path / "fitted.toml"
    told = call("fit", str(log), "--on", PROFILE, "-o", str(out))
    assert "before" in told
    assert "after" in told
    constants = tomllib.loads(out.read_text())["constants"]["llama.cpp"]
    assert constants["cpu"]["gemm"]["q8_0"]["source"] == "fitted"
    assert "llama-bench" in constants["cpu"]["gemm"]["q8_0"]["where"]
    again = json.loads(call("fit", str(log), "--on", str(out), "--json"))
    assert len(again["rows"]) == 6
    assert "llama.cpp.cpu.gemm.q8_0" in again["constants"]


def test_a_serving_benchmark_is_fitted(tmp_path: Path) -> None:
    rows = []
    for running in (1, 8, 32):
        tpot = 8.0 + 0.1 * running
        rows.append(
            {
                "backend": "vllm", "model_id": "m", "completed": 100, "duration": 100 * 100 * tpot * 1e-3 / running,
                "total_input_tokens": 51200, "total_output_tokens": 10000, "request_rate": running,
                "mean_ttft_ms": 40.0, "median_ttft_ms": 40.0, "p99_ttft_ms": 80.0,
                "mean_tpot_ms": tpot, "median_tpot_ms": tpot, "p99_tpot_ms": 2 * tpot,
            }
        )  # fmt: skip
    log = tmp_path / "serving.json"
    log.write_text(json.dumps(rows))
    found = json.loads(call("fit", str(log), "--on", PROFILE, "--json"))
    assert found["parameters"]["step"]["value"] == pytest.approx(8e-3, rel=0.02)
    assert "running sequence" in call("fit", str(log), "--on", PROFILE)


def refused(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What the command says on stderr when it ends with status 2."""
    result = CliRunner().invoke(app, ["calibrate", *words])
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line.startswith("stowplan: ")]
    assert len(lines) == 1, result.output
    return lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--only", "cpus"), "--only cpus"),
        (("run", "--budget", "4"), "has no unit"),
        (("run", "--html", "page.txt"), "--html"),
        (("run", "--on", "no-such-machine"), "no-such-machine"),
        (("show", "absent"), "calibrate run"),
        (("show", "absent.toml"), "absent.toml"),
        (("compare", "a", "b"), "no profile"),
        (("merge", PROFILE, PROFILE), "-o FILE.toml is missing"),
        (("fit", "absent.json", "--on", PROFILE), "absent.json"),
        (("load", "ftp://x", "--model", "m", "-o", "log.jsonl"), "http address"),
        (
            ("load", "http://127.0.0.1:9/v1", "--model", "m", "-o", "log.jsonl", "--requests", "1"),
            "no request was answered",
        ),
    ],
)
def test_wrong_input_gets_one_sentence(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(monkeypatch, *words)
    assert not list(tmp_path.rglob("*.toml"))


def test_without_compiler_and_gpu_everything_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    folder = tmp_path / "c"
    words = ("run", "--only", "gpu,pcie", "--budget", "1 s", "-o", str(folder), "--on", "cpu-laptop-32")
    assert "no NVIDIA GPU is here" in refused(monkeypatch, *words)
    assert not (folder / "profile.toml").exists()
    assert all(each.reason for each in read_results(folder).skipped)


def test_a_cancelled_run_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stowplan.cli import calibration_progress

    class Cancelling(calibration_progress._Lines):
        def finished(self, record: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(calibration_progress, "_Lines", Cancelling)
    folder = tmp_path / "c"
    told = call(
        "run", "--quick", "--only", "cpu", "--budget", "0.1 s", "-o", str(folder), "--on", "cpu-laptop-32", status=130
    )
    assert "what is done is kept" in told
    assert len(read_results(folder).records) == 1
    assert not (folder / "profile.toml").exists()
