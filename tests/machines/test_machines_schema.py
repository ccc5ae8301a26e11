"""Wrong files get one sentence that names the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError
from stowplan.machines import SCHEMA, library, load_machine
from stowplan.machines.schema import PartKind, read_part

GOOD = library.find_file("gpu", "rtx-4090").read_text()
MEMORY = next(line for line in GOOD.splitlines() if line.startswith("memory"))

BAD_LINES = {
    "no unit": 'memory = { value = "24", source = "datasheet", where = "x" }',
    "other dimension": 'memory = { value = "24 GB/s", source = "datasheet", where = "x" }',
    "bare number": "memory = 24",
    "bare text": 'memory = "24 GiB"',
    "negative": 'memory = { value = "-24 GiB", source = "datasheet", where = "x" }',
    "zero": 'memory = { value = "0 GiB", source = "datasheet", where = "x" }',
    "infinite": 'memory = { value = inf, source = "datasheet", where = "x" }',
    "overflowing": 'memory = { value = "1e400 GiB", source = "datasheet", where = "x" }',
    "absurd": 'memory = { value = "1e30 GiB", source = "datasheet", where = "x" }',
    "list": 'memory = { value = ["24 GiB"], source = "datasheet", where = "x" }',
    "boolean": 'memory = { value = true, source = "datasheet", where = "x" }',
    "no source": 'memory = { value = "24 GiB", where = "x" }',
    "no where": 'memory = { value = "24 GiB", source = "datasheet" }',
    "empty where": 'memory = { value = "24 GiB", source = "datasheet", where = " " }',
    "other source": 'memory = { value = "24 GiB", source = "rumour", where = "x" }',
    "source of another type": 'memory = { value = "24 GiB", source = 3, where = "x" }',
    "unknown member": 'memory = { value = "24 GiB", source = "datasheet", where = "x", unit = "GiB" }',
    "negative sd": 'memory = { value = "24 GiB", source = "datasheet", where = "x", sd = -1 }',
    "sd of another type": 'memory = { value = "24 GiB", source = "datasheet", where = "x", sd = "5 %" }',
    "sd not a number": 'memory = { value = "24 GiB", source = "datasheet", where = "x", sd = nan }',
    "missing": "",
    "misspelt": MEMORY.replace("memory", "memmory", 1),
    "huge integer": "memory = { value = " + "9" * 4000 + ', source = "datasheet", where = "x" }',
    "integer beyond Python's limit": "memory = { value = " + "9" * 9000 + ', source = "datasheet", where = "x" }',
    "nested without end": "memory = " + "[" * 5000,
    "truncated": MEMORY[:20],
    "twice": MEMORY + "\n" + MEMORY,
    "lanes as text": MEMORY + '\nunified = "yes"',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_field_is_one_sentence_with_file_and_field(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad-gpu.toml"
    path.write_text(GOOD.replace(MEMORY, line))
    with pytest.raises(InputError) as caught:
        library.load_gpu(str(path))
    message = str(caught.value)
    assert "bad-gpu.toml" in message
    assert "\n" not in message
    assert len(message) < 600


def test_other_bad_gpu_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for text in ("", "\0", 'name = "x"', GOOD.replace("pcie_lanes = 16", ""), GOOD.replace("[peaks]", "[peeks]")):
        path.write_text(text)
        with pytest.raises(InputError):
            library.load_gpu(str(path))
    path.write_bytes(b"\xff\xfe" + GOOD.encode())
    with pytest.raises(InputError):
        library.load_gpu(str(path))
    with pytest.raises(InputError):
        library.load_gpu(str(tmp_path / "folder.toml"))


def test_truncation_at_any_place_is_refused_or_complete(tmp_path: Path) -> None:
    path = tmp_path / "cut.toml"
    for length in range(0, len(GOOD), 97):
        path.write_text(GOOD[:length])
        try:
            library.load_gpu(str(path))
        except InputError as error:
            assert "\n" not in str(error).strip()


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu": "ryzen-9-7950x"},
        {"cpu": 3, "memory": "ddr5-5600x2:128GiB"},
        {"cpu": "ryzen-9-7950y", "memory": "ddr5-5600x2:128GiB"},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600:128GiB"},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128"},
        {"cpu": "ryzen-9-7950x", "memory": "ddr4-3200x2:128GiB"},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128GiB", "gpus": "rtx-4090"},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128GiB", "gpus": ["999x rtx-4090"]},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128GiB", "disks": ["samsung-990-pro:fast"]},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128GiB", "pcie_generation": 9, "pcie_lanes": -4},
        {"cpu": "ryzen-9-7950x", "memory": "ddr5-5600x2:128GiB", "peer": "string"},
    ],
)
def test_bad_machine_file(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "machine.toml"
    lines = ['name = "m"', *(f"{name} = {value!r}" for name, value in fields.items())]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"machine\.toml"):
        load_machine(str(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["value", "source", "where", "sd", "x"]), inner, max_size=4)
    ),
    max_leaves=6,
)
KINDS: tuple[PartKind, ...] = ("gpu", "cpu", "memory", "disk", "link", "machine")


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_table_is_read_or_refused_by_an_input_error(kind: PartKind, data: st.DataObject) -> None:
    names = st.sampled_from([field.name for field in SCHEMA[kind]]) | st.text(max_size=8)
    raw = data.draw(st.dictionaries(names, VALUES, max_size=6))
    try:
        read_part(kind, raw, "file.toml")
    except InputError as error:
        assert "file.toml" in str(error)


def test_every_field_says_what_it_means() -> None:
    for fields in SCHEMA.values():
        assert len({field.name for field in fields}) == len(fields)
        for field in fields:
            assert len(field.meaning) > 3
            assert (field.shape == "number") <= (field.dimension is not None)
