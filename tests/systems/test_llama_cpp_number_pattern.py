"""Compact patterns for sets of layer numbers match exactly those numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.systems.number_pattern import number_pattern

RUNS = st.tuples(st.integers(0, 999), st.integers(0, 300)).map(lambda r: set(range(r[0], min(1000, r[0] + r[1] + 1))))
SETS = st.one_of(
    st.sets(st.integers(0, 999), min_size=1, max_size=60),
    RUNS,
    st.lists(RUNS, min_size=1, max_size=4).map(lambda runs: set().union(*runs)),
)


def matched(pattern: str) -> set[int]:
    compiled = re.compile(rf"^blk\.{pattern}\.ffn_up_exps\.weight$")
    return {n for n in range(1000) if compiled.search(f"blk.{n}.ffn_up_exps.weight")}


@settings(deadline=None, max_examples=200)
@given(SETS)
def test_exactly_the_numbers_given_match(numbers: set[int]) -> None:
    pattern = number_pattern(numbers)
    assert matched(pattern) == numbers
    assert re.fullmatch(r"[0-9()|\[\]-]+", pattern), "only what std::regex and Python read alike"
    assert "," not in pattern
    assert ";" not in pattern


def test_every_run_of_two_digit_layers() -> None:
    names = [f"blk.{n}.x" for n in range(130)]
    for low in range(0, 128, 3):
        for high in range(low, 128, 5):
            compiled = re.compile(rf"^blk\.{number_pattern(range(low, high + 1))}\.x$")
            assert [n for n, name in enumerate(names) if compiled.search(name)] == list(range(low, high + 1))


def test_patterns_are_short_and_independent_of_order() -> None:
    assert number_pattern(range(11, 94)) == "(1[1-9]|[2-8][0-9]|9[0-3])"
    assert number_pattern([7]) == "7"
    assert number_pattern([3, 1, 2, 2]) == number_pattern([1, 2, 3]) == "[1-3]"
    assert len(number_pattern(range(1000))) < 40


@pytest.mark.parametrize("numbers", [[], [-1], [-1, 5]])
def test_no_numbers_and_negative_ones_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers from 0"):
        number_pattern(numbers)
