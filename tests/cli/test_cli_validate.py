"""`stowplan validate` end to end: tables, documents, pages, and one sentence for what is wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stowplan.cli import validation_tables
from stowplan.cli.app import app
from stowplan.cli.published import SCHEMAS
from stowplan.cli.tables import WIDTH
from stowplan.validate.ablation import Ablation, FamilyLevels, LevelErrors, SystemPart
from stowplan.validate.fitted import Constant

SMALL = ("validate", "--hardware", "rtx-3070", "--jobs", "1")
FAMILY = "llama.cpp full-gpu decode"


@cache
def output(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_names_families_promises_and_cases_and_the_page_is_written(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    text = output(*SMALL, "--fitted", "--cases", "--html", str(target))
    assert FAMILY in text
    assert "that no constant was set on" in text
    assert "out of memory" in text
    assert "cb243/512" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "Predicted against measured" in target.read_text(encoding="utf-8")


def test_the_document_follows_its_published_schema_and_is_deterministic() -> None:
    words = ("validate", "--family", FAMILY, *SMALL[1:], "--json")
    first = output(*words)
    assert CliRunner().invoke(app, words).output == first
    document = SCHEMAS["validation"].model_validate_json(first).model_dump()
    assert document["schema_version"] == "stowplan.validation/1"
    assert {case["family"] for case in document["cases"]} == {FAMILY}
    (family,) = document["families"] + document["fitted_families"]
    assert family["n"] == len(document["cases"])
    assert set(family) >= {
        *("name", "n", "median_signed_error", "median_abs_error", "p90_abs_error"),
        *("interval_coverage", "target_median"),
    }
    assert family["target_median"] == 0.1


def test_the_schema_is_published() -> None:
    schema = json.loads(output("schema", "validation"))
    assert {"families", "targets", "winners", "cases"} <= set(schema["properties"])


def test_what_is_left_out_is_listed_with_its_reason() -> None:
    text = output("validate", "--unexpressed")
    assert "training or fine-tuning, which is not modelled" in text
    groups = json.loads(output("validate", "--unexpressed", "--json"))
    assert sum(len(group["ids"]) for group in groups) > 500
    assert all(group["reason"] and group["sources"] for group in groups)


def test_an_ablation_shows_three_levels_and_what_was_fitted() -> None:
    words = ("validate", "--ablation", "--system", "flexgen", "--hardware", "t4-16", "-j", "1")
    document = json.loads(output(*words, "--json"))
    checked = SCHEMAS["ablation"].model_validate(document).model_dump()
    (family,) = [each for each in checked["families"] if each["name"] == "FlexGen"]
    assert family["datasheet"]["median_abs_error"] > family["everything"]["median_abs_error"]
    assert any(each["kind"] == "fitted" for each in checked["constants"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--system", "lama.cpp"), "no validated system is called 'lama.cpp'; nearest: llama.cpp"),
        (("--family", "nothing"), "no family is called 'nothing'"),
        (("--hardware", "rtx-9999"), "no case ran on it"),
        (("--html", "page.txt"), ".html"),
        (("--ablation", "--unexpressed"), "one at a time"),
        (("--unexpressed", "--system", "flexgen"), "no filter"),
        (("--ablation", "--html", "page.html"), "writes no page"),
        (("--ablation", "--system", "vLLM serving"), "choose a system"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["validate", *words])
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_the_tables_of_an_ablation_keep_to_their_width() -> None:
    found = Ablation(
        families=(FamilyLevels("some family", 12, tuple(LevelErrors(m, 2 * m) for m in (0.9, 0.4, 0.1))),),
        parts=(SystemPart("llama.cpp", "fit", 3, ("rtx-3090 + ryzen-9-5950x",) * 9),),
        constants=(
            Constant("llama.cpp.toml", "gpu.gemm_share", "0.6", "fitted", "share of the peak: " + "data " * 60),
        ),
    )
    lines = [line.text for line in validation_tables.ablation(found)]
    assert max(map(len, lines)) <= WIDTH
    assert any("90% (180%)" in line and "10% (20%)" in line for line in lines)
    assert any("llama.cpp gpu.gemm_share" in line for line in lines)
