"""`stowplan compare`, and published systems in `show` and `list`: what people and programs get, and how it fails."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.cli.comparing import comparison_answer, wanted
from stowplan.cli.comparison_document import ComparisonDocument
from stowplan.cli.tables import WIDTH
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import MemoryUse, Workload
from stowplan.planner.comparison import Compared, Comparison, Refused

pytestmark = pytest.mark.filterwarnings("ignore:.*PuLP 4:DeprecationWarning")

GOLDEN = Path(__file__).parent / "golden"
GIB = 2.0**30
SMALL = ["compare", "--model", "llama-2-13b", "--quant", "f16", "--on", "rtx-4090-desktop-128", "--prompt", "64"]
FEW = ["--systems", "zero-inference,hetegen,h2o,fate"]
TWO = ["--systems", "zero-inference,h2o,fate"]


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def row(key: str, rate: float, *, quality: str = "") -> Compared:
    return Compared(
        key=key,
        title=key.title(),
        decode_tokens_per_s=rate,
        ttft_s=1.25,
        cost_s=1.25 + 128 / rate,
        bottleneck="gpu0.h2d",
        shares={"gpu0.h2d": 0.9, "overhead": 0.1},
        memory={
            "gpu0": MemoryUse(used=23.5 * GIB, capacity=24 * GIB),
            "ram": MemoryUse(used=17 * GIB, capacity=124 * GIB),
            "disk": MemoryUse(used=0.0, capacity=1863 * GIB),
        },
        exact=not quality,
        quality=quality,
        settings={"weights.gpu": 0.58, "weights.ram": 0.42, "weights.cpu": 0.8},
    )


def comparison() -> Comparison:
    return Comparison(
        workload=Workload(prompt=512),
        objective="request",
        runs=[row("llama.cpp", 3.0), row("h2o", 1.33, quality="80 % of the tokens are evicted")],
        refused=[Refused("fate", "Fate", "it places routed experts, which Llama 3.3 70B does not have")],
        ideal=row("ideal", 4.1),
        floor_tokens_per_s=4.85,
    )


def test_a_comparison_reads_as_agreed() -> None:
    machine, model = load_machine("rtx-4090-desktop-128"), load_model("llama-3.3-70b", "q4_k_m")
    lines = comparison_answer(comparison(), machine, model)
    text = "\n".join(line.text for line in lines) + "\n"
    path = GOLDEN / "compare.txt"
    if os.environ.get("STOWPLAN_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert all(len(line.text) <= WIDTH and line.text.isascii() for line in lines)


def test_systems_are_set_side_by_side_and_written_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    code, out, err = run(*SMALL, *FEW, "--html", str(page))
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()]
    assert names.index("(ideal") < names.index("hetegen") < names.index("zero-inference")
    assert "cannot run this" in out and "routed experts" in out and "h2o ~" in out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "HeteGen" in text and "ZeRO-Inference" in text
    assert "http://" not in text and "https://" not in text


def test_programs_get_a_document_that_follows_its_schema() -> None:
    code, out, err = run(*SMALL, *TWO, "--json")
    assert (code, err) == (0, "")
    found = ComparisonDocument.model_validate_json(out)
    assert {each.system for each in found.systems} == {"zero-inference", "h2o"}
    assert [each.system for each in found.refused] == ["fate"]
    assert [each.cost_s for each in found.systems] == sorted(each.cost_s for each in found.systems)
    assert run(*SMALL, *TWO, "--json")[1] == out
    schema = json.loads(run("schema", "comparison")[1])
    assert schema["properties"]["schema_version"]["const"] == "stowplan.comparison/1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*SMALL, "--systems", "headinfr"], "headinfer"),
        ([*SMALL, "--html", "page.txt"], r"\.html"),
        ([*SMALL, "--context", "10"], "--context 10"),
        (["compare", "--model", "nothing", "--on", "rtx-4090-desktop-128"], "nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(words: list[str], told: str) -> None:
    code, out, err = run(*words)
    assert code == 2 and out == ""
    assert re.search(told, err) and len(err.strip().splitlines()) == 1


def test_lists_of_systems_are_read() -> None:
    assert wanted("all") == [] and wanted("") == []
    assert wanted(" H2O, kivi,h2o ") == ["h2o", "kivi"]


def test_a_published_system_shows_its_paper_mechanisms_and_numbers() -> None:
    code, out, _ = run("show", "system", "h2o")
    assert code == 0
    assert "arXiv:2306.14048" in out and "approximate" in out
    assert re.search(r"cache\.kept\s+0\.2", out) and "section 5.3" in out
    assert all(len(line) <= WIDTH for line in out.splitlines())
    assert run("show", "system", "nothing")[0] == 2


def test_published_systems_are_listed() -> None:
    out = run("list", "systems")[1]
    assert all(name in out for name in ("llama.cpp", "headinfer", "hybrimoe"))


GALLERY = {
    "70b-on-24gb": [
        "--model", "llama-3.3-70b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128",
    ],
    "235b-mixture-on-24gb-128gb": [
        "--model", "qwen3-235b-a22b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128", "--prompt", "2048",
    ],
    "million-tokens-on-24gb": [
        "--model", "llama-3.1-8b", "--quant", "bf16", "--on", "rtx-4090-desktop-512", "--prompt", "1000000",
    ],
}  # fmt: skip
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def skeleton(line: str) -> str:
    """A line without its numbers."""
    return " ".join(NUMBER.sub("#", line).split())


def numbers(line: str) -> list[float]:
    """The numbers of a line."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(line)]


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery_says_what_it_said(name: str) -> None:
    """Words exactly, numbers within a fifth: kernels are fitted anew now and then."""
    code, out, err = run("compare", *GALLERY[name])
    assert (code, err) == (0, "")
    path = GOLDEN / f"compare-{name}.txt"
    if os.environ.get("STOWPLAN_UPDATE_GOLDEN"):
        path.write_text(out, encoding="utf-8")
    was = path.read_text(encoding="utf-8")
    now = {skeleton(line): line for line in out.splitlines()}
    for line in was.splitlines():
        assert skeleton(line) in now, f"gone: {line}"
        assert numbers(now[skeleton(line)]) == pytest.approx(numbers(line), rel=0.2, abs=1.0), line
    assert all(len(line) <= WIDTH for line in now.values())


def test_routing_of_a_mixture_is_told(tmp_path: Path) -> None:
    code, out, err = run("routing", "--model", "mixtral-8x7b")
    assert (code, err) == (0, "")
    assert "2 of 8 experts" in out and "fitted" in out
    assert re.search(r"^\s+6(\s+\d+%){5}$", out, re.MULTILINE)
    path = tmp_path / "routing.jsonl"
    path.write_text('{"layer": 2, "experts": [0, 3]}\n' * 40, encoding="utf-8")
    code, out, err = run("routing", "--trace", str(path), "--experts", "4")
    assert (code, err) == (0, "") and "layer 2" in out and "100%" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give --model"),
        (["--model", "llama-3.1-8b"], "no routed experts"),
        (["--trace", "nothing.jsonl"], "give --experts"),
        (["--trace", "nothing.jsonl", "--experts", "4"], "cannot be read"),
    ],
)
def test_routing_says_what_is_missing(words: list[str], told: str) -> None:
    code, _, err = run("routing", *words)
    assert code == 2 and told in err


@pytest.mark.slow
def test_a_published_systems_plan_is_kept_and_predicted_again(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    code, out, err = run(
        "plan", "deepseek-v2-lite", "--quant", "q4_k_m", "--on", "rtx-3060-laptop-16", "--system", "hybrimoe",
        "--prompt", "64", "-o", str(plan),
    )  # fmt: skip
    assert (code, err) == (0, "")
    again, told, err = run("predict", str(plan))
    assert (again, err) == (0, "")
    rate = re.search(r"decode +([\d.]+) tok/s", out)
    assert rate is not None and rate[0] in told
