"""Plan files: what is written is read back, what is broken is refused in one sentence, writes are whole or absent."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stowplan.errors import BadFile
from stowplan.plan import Place, PlacedLayers, Plan, Workload, expand, read_plan, run_lengths, write_atomically

PLAN = Plan(
    system="llama.cpp",
    machine="rtx-3090-desktop-64",
    set=["memory.capacity=96GiB"],
    model="llama-3.1-8b",
    quant="q4_k_m",
    workload=Workload(prompt=100, generate=10),
    layers=[PlacedLayers(first=0, last=31, places={"attention": "gpu0", "kv": "gpu0", "ffn_up": {"ram": 1.0}})],
    embedding="ram",
    output="gpu0",
    settings={"ubatch": 512},
)
PLACES = st.dictionaries(
    st.sampled_from(["attention", "kv", "ffn_up"]),
    st.one_of(st.sampled_from(["gpu0", "ram"]), st.just({"gpu0": 0.25, "ram": 0.75})),
    min_size=1,
)


def one_sentence(error: BaseException, path: Path) -> None:
    text = str(error)
    assert text.startswith(str(path))
    assert "Traceback" not in text
    assert len(text) < 400 + len(str(path))


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, PLAN.model_dump_json().encode())
    assert read_plan(path) == PLAN
    assert list(tmp_path.iterdir()) == [path]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = PLAN.model_dump_json().encode()
    path = tmp_path / "plan.json"
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile) as caught:
            read_plan(path)
        one_sentence(caught.value, path)


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "not utf-8": b"\xff\xfe{}",
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "endless number": b'{"workload": ' + b"9" * 10_000 + b"}",
    "infinite number": b'{"workload": {"prompt": 1e999}}',
    "lone surrogate": b'{"system": "\\ud800"}',
    "nan": b'{"system": NaN}',
    "duplicate end": PLAN.model_dump_json().encode() + b"}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_plan(path)
    one_sentence(caught.value, path)


WRONG_FIELDS: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "schema_version": (("schema_version",), "stowplan.plan/999"),
    "workload.prompt": (("workload", "prompt"), -1),
    "workload.batch": (("workload", "batch"), 2**40),
    "layers.0.first": (("layers", 0, "first"), "x"),
    "layers.0.places": (("layers", 0, "places"), 5),
    "surprise": (("surprise",), 1),
    "system": (("system",), None),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_wrong_field_is_named(tmp_path: Path, field: str) -> None:
    keys, value = WRONG_FIELDS[field]
    data = json.loads(PLAN.model_dump_json())
    inner: Any = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BadFile, match=field.replace(".", r"\.")) as caught:
        read_plan(path)
    one_sentence(caught.value, path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.integers(0, 400))
def test_bytes_written_over_a_plan_never_end_in_another_error(tmp_path: Path, noise: bytes, where: int) -> None:
    whole = PLAN.model_dump_json().encode()
    path = tmp_path / "plan.json"
    path.write_bytes(whole[:where] + noise + whole[where + len(noise) :])
    try:
        read_plan(path)
    except BadFile as error:
        one_sentence(error, path)


def test_missing_files_folders_and_giants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read"):
        read_plan(tmp_path / "absent.json")
    with pytest.raises(BadFile, match="cannot be read"):
        read_plan(tmp_path)
    giant = tmp_path / "giant.json"
    with giant.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(BadFile, match="larger than 16 MiB"):
        read_plan(giant)


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def full(self: Path, *arguments: object) -> None:
        if step == "write_bytes":
            with self.open("wb") as file:
                file.write(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(BadFile, match=r"cannot be written .*No space left"):
        write_atomically(path, b"half of it never arrives")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be written"):
        write_atomically(tmp_path / "no" / "such" / "plan.json", b"x")


@settings(deadline=None, max_examples=60)
@given(st.lists(PLACES, min_size=1, max_size=12))
def test_run_lengths_are_maximal_and_expand_to_what_they_came_from(layers: list[dict[str, Place]]) -> None:
    runs = run_lengths(layers)
    assert expand(runs, len(layers), where="plan") == layers
    assert all(left.places != right.places for left, right in pairwise(runs))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 1)], "layer 2 of 4 has no places"),
        ([(1, 3)], "layer 0 of 4 has no places"),
        ([(0, 2), (2, 3)], "layer 2 is outside .* or named twice"),
        ([(0, 4)], "layer 4 is outside the model's 4 layers"),
        ([(-1, 3)], "layer -1 is outside"),
        ([], "layer 0 of 4 has no places"),
        ([(3, 0)], "layer 0 of 4 has no places"),
        ([(0, 10**12)], "layer 4 is outside"),
    ],
)
def test_layers_missing_doubled_or_outside_are_refused(spans: list[tuple[int, int]], message: str) -> None:
    runs = [PlacedLayers(first=first, last=last, places={"kv": "ram"}) for first, last in spans]
    with pytest.raises(BadFile, match=f"myplan: layers: {message}"):
        expand(runs, 4, where="myplan")
