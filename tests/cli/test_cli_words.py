"""Resources, tiers and numbers in plain words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.cli import words
from stowplan.cli.tables import WIDTH, blocks, labelled, table
from stowplan.plan import MemoryUse, Prediction, Rest, Unseen

GIB = 2.0**30


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("host.dram", 1, "host DRAM"),
        ("gpu0.hbm", 1, "GPU memory"),
        ("gpu1.hbm", 2, "GPU 1 memory"),
        ("gpu0.h2d", 1, "GPU link from host"),
        ("overhead", 1, "launches and synchronisation"),
        ("peer", 2, "copies between GPUs"),
        ("something.new", 1, "something.new"),
    ],
)
def test_resources_have_plain_words(name: str, gpus: int, expected: str) -> None:
    assert words.resource(name, gpus) == expected


def test_memory_tells_spilled_pages_apart() -> None:
    text = words.memory({"ram": MemoryUse(used=139 * GIB, capacity=128 * GIB)})
    assert text == "RAM 128 / 128 GiB   SSD 11.0 GiB read on demand"


def test_memory_of_many_gpus_is_one_entry() -> None:
    tiers = {f"gpu{i}": MemoryUse(used=(70 + i) * GIB, capacity=80 * GIB) for i in range(8)}
    assert words.memory(tiers) == "8 GPUs, the fullest 77.0 / 80.0 GiB"


@pytest.mark.parametrize(("count", "expected"), [(512, "512"), (2048, "2k"), (32768, "32k"), (1500, "1500")])
def test_tokens(count: int, expected: str) -> None:
    assert words.tokens(count) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.0413, "41.3 ms"), (9.4, "9.40 s"), (441.0, "441 s")])
def test_waits(value: float, expected: str) -> None:
    assert words.seconds(value) == expected


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=30), min_size=3, max_size=3)
    )
)
@settings(deadline=None, max_examples=50)
def test_tables_keep_to_the_width(rows: list[list[str]]) -> None:
    lines = table(["first", "second", "third"], rows, numbers=(1,))
    assert all(len(line.text) <= WIDTH for line in lines)
    assert len(lines) == len(rows) + 1


@given(st.text(max_size=400).map(lambda text: " ".join(text.split())))
@settings(deadline=None, max_examples=50)
def test_labels_lose_no_word(text: str) -> None:
    lines = labelled("label", text)
    assert " ".join(line.text[13:] for line in lines).split() == text.split()


def test_empty_blocks_leave_no_gap() -> None:
    assert [line.text for line in blocks([], labelled("a", "b"), [])] == ["", "  a          b"]


def test_what_no_fitted_record_had_is_one_clause() -> None:
    rest = Rest(name="a", value=1.0, kind="measured", source="somewhere", sd=0.1, elasticity=1.0)
    new = [
        Unseen(part="architecture", group="mamba", name="mamba", decode_sd=0.2, prefill_sd=0.1),
        Unseen(part="gpu", group="amd fp16", name="Radeon", decode_sd=0.1, prefill_sd=0.0),
    ]
    known = "1 of 1 figures measured"
    assert words.provenance(Prediction.model_construct(rests_on=[rest], unseen=[])) == known
    told = words.provenance(Prediction.model_construct(rests_on=[rest], unseen=new))
    since = "the interval is wider, since no fitted record had the architecture mamba or a GPU like Radeon"
    assert told == f"{known}; {since}"
