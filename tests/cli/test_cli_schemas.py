"""What every command prints with ``--json`` follows the schema that `stowplan schema` publishes for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from tests.calibrate.random_gguf import llama_facts, write_random_gguf
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.cli.documents import as_json
from stowplan.cli.published import SCHEMAS
from stowplan_calibrate.results import Record, ResultsFolder
from stowplan_calibrate.sampling import Sampled

pytestmark = pytest.mark.filterwarnings("ignore:.*PuLP 4:DeprecationWarning")

RECORDED = Path(__file__).resolve().parents[1] / "calibrate" / "recorded"
PROFILE = str(RECORDED / "profile-epyc.toml")
SMALL = ("llama-3.2-1b", "--quant", "q4_k_m", "--on", "rtx-3060-laptop-16")
REPLAY = ("azure-2023-conversation-first-400", "--plan", "{plan}", "--head", "60")
LISTS = ("machines", "gpus", "cpus", "memory", "disks", "links", "models", "formats", "mixes", "systems")

COMMANDS: list[tuple[str, tuple[str, ...]]] = [
    ("answer", ("plan", *SMALL[:-1], "cpu-laptop-32", "--upgrades", "--json")),
    ("prediction", ("predict", "{plan}", "--json")),
    (
        "plan",
        ("import", "--on", "rtx-3060-laptop-16", "--", "llama-server -m Llama-3.2-1B-Q4_K_M.gguf -ngl 12 -c 4096"),
    ),
    ("comparison", ("compare", "--model", *SMALL, "--systems", "llama.cpp,flexgen", "--json")),
    ("validation", ("validate", "--system", "fate", "-j", "1", "--json")),
    ("ablation", ("validate", "--ablation", "--hardware", "t4-16", "--system", "flexgen", "-j", "1", "--json")),
    ("unexpressed", ("validate", "--unexpressed", "--json")),
    ("batching", ("batch", *SMALL[:-1], "l4-cloud", "--requests", "{lengths}", "--max-batch", "2", "--json")),
    ("replay", ("replay", *REPLAY, "--json")),
    ("replay", ("replay", *REPLAY, "--slo", "ttft=1s", "--conversations", "--kv-tier", "host=1GiB", "--json")),
    ("capacity", ("capacity", *REPLAY, "--slo", "ttft=1s,tpot=50ms", "--json")),
    ("capacity", ("capacity", *REPLAY[:4], "1", "--slo", "ttft=5s", "--count-engines", "--json")),
    ("whatif", ("whatif", *SMALL[:-1], "cpu-laptop-32", "--json")),
    ("whatif", ("whatif", "{stored}", "--json")),
    ("sweep", ("whatif", *SMALL, "--sweep", "gpu.memory=6GiB", "--sweep", "context=2048,999999", "--json")),
    ("breakeven", ("whatif", *SMALL, "--until", "decode=60", "--vary", "gpu.bandwidth=100GB/s:800GB/s", "--json")),
    ("breakeven", ("whatif", *SMALL, "--until", "decode=1e6", "--vary", "context=1024:2048", "--json")),
    ("traces", ("traces", "list", "--json")),
    ("trace-statistics", ("traces", "stats", REPLAY[0], "--json")),
    ("trace-statistics", ("traces", "stats", "{turns}", "--json")),
    ("measurements", ("calibrate", "show", "{measured}", "--json")),
    ("profile", ("calibrate", "show", PROFILE, "--json")),
    ("profile-differences", ("calibrate", "compare", PROFILE, "{other}", "--json")),
    ("engine-fit", ("calibrate", "fit", "{bench}", "--on", PROFILE, "--json")),
    ("serving-fit", ("calibrate", "fit", "{serving}", "--on", PROFILE, "--json")),
    *(("list", ("list", kind, "--json")) for kind in LISTS),
]

SLOW = ("ablation", "comparison", "engine-fit", "validation")
"""Documents whose commands predict again and again; but for the fit, their own tests read them with their models."""

DESCRIBED_BY_THEIR_CLASS = ("plan", "prediction", "answer", "comparison", "validation", "ablation")
"""Documents whose fields are explained together, in the description of the object that they belong to."""


def run(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Small inputs by the name that stands for them in `COMMANDS`."""
    folder = tmp_path_factory.mktemp("inputs")
    found = {
        name: str(folder / name) for name in ("plan.json", "stored.json", "lengths.csv", "turns.jsonl", "serving.json")
    }
    run("plan", *SMALL, "-o", found["plan.json"])
    run("plan", *SMALL[:-1], "cpu-laptop-32", "--kv", "q8_0", "--context", "4096", "-o", found["stored.json"])
    Path(found["lengths.csv"]).write_text("prompt_tokens,output_tokens\n" + "100,20\n300,5\n")
    _conversations(Path(found["turns.jsonl"]))
    _serving_benchmark(Path(found["serving.json"]))
    other = folder / "other.toml"
    other.write_text(Path(PROFILE).read_text().replace('"20 GB/s"', '"25 GB/s"'))
    measured = ResultsFolder(folder / "measured")
    measured.prepare({})
    for threads in (1, 2):
        sampled = Sampled((0.1, 0.11, 0.1), {"host clock": (3e9, 2.9e9)}, "precise", (1.0, 1.0, 1.0))
        measured.append(Record("host.read", "cpu", {"threads": threads}, {"bytes": 1e9}, sampled, "cc", "2026-11-21"))
    named = {Path(path).stem: path for path in found.values()}
    return named | {"other": str(other), "measured": str(measured.folder), "bench": str(_bench_log(folder))}


def _conversations(path: Path) -> None:
    rows = [
        {"arrival_s": float(k), "prompt_tokens": 32 * (k + 1), "output_tokens": 8, "session": k % 2} for k in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _bench_log(folder: Path) -> Path:
    """Recorded rows of one small model, its file's header beside them."""
    model = folder / "s125m-q8_0.gguf"
    write_random_gguf(
        model, llama_facts("s125m", hidden=768, layers=12, heads=12, kv_heads=4, ffn=2048), "q8_0", holes=True
    )
    rows = (RECORDED / "llama-bench-epyc.jsonl").read_text().splitlines()
    chosen = [json.loads(row) | {"model_filename": str(model)} for row in rows if "s125m-q8_0" in row]
    log = folder / "bench.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return log


def _serving_benchmark(path: Path) -> None:
    rows = []
    for running in (1, 8, 32):
        tpot = 8.0 + 0.1 * running
        times = {"ttft_ms": 40.0, "tpot_ms": tpot}
        rows.append(
            {"backend": "vllm", "model_id": "m", "completed": 100, "duration": 10 * tpot / running}
            | {"total_input_tokens": 51200, "total_output_tokens": 10000, "request_rate": running}
            | {f"{kind}_{name}": value for kind in ("mean", "median", "p99") for name, value in times.items()}
        )
    path.write_text(json.dumps(rows))


@cache
def _printed(words: tuple[str, ...]) -> str:
    return run(*words)


def printed(words: tuple[str, ...], files: Mapping[str, str]) -> str:
    """What a command of `COMMANDS` prints; every command runs once."""
    return _printed(tuple(re.sub(r"^\{(\w+)\}$", lambda found: files[found[1]], word) for word in words))


@cache
def published(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(run("schema", name))
    return schema


def misfits(value: object, schema: Mapping[str, Any], whole: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Where a document leaves a JSON schema, by the schema alone: no model of ours takes part."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema and all(list(misfits(value, each, whole, at)) for each in schema["anyOf"]):
        yield f"{at}: {value!r:.60} is nothing of what is allowed"
    if "type" in schema and not _is_of(value, schema["type"]):
        yield f"{at}: {value!r:.60} is no {schema['type']}"
    elif value != schema.get("const", value) or value not in schema.get("enum", [value]):
        yield f"{at}: {value!r:.60} is not allowed"
    elif isinstance(value, dict):
        known, further = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{at}: lacks {name}" for name in schema.get("required", []) if name not in value)
        for name, inner in value.items():
            rule = known.get(name, further)
            if rule is False:
                yield f"{at}: has {name}"
            elif rule is not True:
                yield from misfits(inner, rule, whole, f"{at}.{name}")
    elif isinstance(value, list):
        first = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{at}: has {len(value)} items"
        for k, inner in enumerate(value):
            yield from misfits(inner, first[k] if k < len(first) else schema.get("items", {}), whole, f"{at}[{k}]")


def _is_of(value: object, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": number and isinstance(value, int),
        "number": number,
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }[kind]


def _parameters(commands: Iterable[tuple[str, tuple[str, ...]]]) -> list[Any]:
    return [
        pytest.param(name, words, id=f"{name}-{k}", marks=[pytest.mark.slow] if name in SLOW else [])
        for k, (name, words) in enumerate(commands)
    ]


def objects(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every part of a schema that describes an object with named fields."""
    yield from (each for each in (schema, *schema.get("$defs", {}).values()) if "properties" in each)


@pytest.mark.parametrize(("name", "words"), _parameters(COMMANDS))
def test_a_command_prints_what_its_schema_says(name: str, words: tuple[str, ...], files: Mapping[str, str]) -> None:
    text = printed(words, files)
    document = json.loads(text)
    assert document
    assert list(misfits(document, published(name), published(name))) == []
    assert as_json(SCHEMAS[name].model_validate_json(text)) == text.removesuffix("\n")
    if isinstance(document, dict):
        assert document["schema_version"] == f"stowplan.{name}/1"


@pytest.mark.parametrize(("name", "words"), _parameters(dict(COMMANDS).items()))
def test_a_field_more_or_less_is_no_document(name: str, words: tuple[str, ...], files: Mapping[str, str]) -> None:
    document = json.loads(printed(words, files))
    first = document[0] if isinstance(document, list) else document
    second_field = list(first)[1]
    for changed in (first | {"surprise": 1}, {key: value for key, value in first.items() if key != second_field}):
        whole = [changed, *document[1:]] if isinstance(document, list) else changed
        assert list(misfits(whole, published(name), published(name)))
        with pytest.raises(ValidationError):
            SCHEMAS[name].model_validate_json(json.dumps(whole))


def test_every_document_and_every_command_with_json_is_covered() -> None:
    assert {name for name, _ in COMMANDS} == SCHEMAS.keys()
    covered = {words for _, words in COMMANDS}
    for path in _json_commands(typer.main.get_command(app), ()):
        assert any(words[: len(path)] == path and words[-1] == "--json" for words in covered), path


def _json_commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if any("--json" in parameter.opts for parameter in command.params):
        yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _json_commands(inner, (*path, name))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_models_and_closed(name: str) -> None:
    assert published(name) == SCHEMAS[name].model_json_schema()
    for each in objects(published(name)):
        more = each["additionalProperties"]
        assert more is False or each["title"] in ("SweepFigures", "SweepRow"), each["title"]
        assert each["description"], each["title"]


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in DESCRIBED_BY_THEIR_CLASS])
def test_every_field_says_what_it_is(name: str) -> None:
    shared = {each["title"] for old in DESCRIBED_BY_THEIR_CLASS for each in objects(published(old))}
    for each in objects(published(name)):
        if each["title"] not in shared:
            assert all(field.get("description") for field in each["properties"].values()), each["title"]


def test_a_swept_row_has_its_paths_and_tiers_and_nothing_else(files: Mapping[str, str]) -> None:
    words = next(words for name, words in COMMANDS if name == "sweep")
    document = json.loads(printed(words, files))
    assert [row["context"] for row in document["rows"]] == ["2048", "999999"]
    assert document["rows"][0]["gpu0_bytes"] > 0
    assert document["rows"][1]["error"]
    for changed in ({"context": 2048.0}, {"contexts": "2048"}, {"other": None}):
        row = document["rows"][0] | changed
        with pytest.raises(ValidationError, match="neither a swept path nor bytes of a tier"):
            SCHEMAS["sweep"].model_validate(document | {"rows": [row]})
    without = {key: value for key, value in document["rows"][0].items() if key != "context"}
    with pytest.raises(ValidationError, match="lacks context"):
        SCHEMAS["sweep"].model_validate(document | {"rows": [without]})


def test_a_sweeps_file_is_the_document_that_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    text = run("whatif", *SMALL, "--sweep", "context=2048", "-o", str(path), "--json")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text)


def test_documents_are_listed() -> None:
    told = run("schema")
    assert all(f"\n  {name}  " in told for name in SCHEMAS)
