"""Formats against the tables of the independent gguf package, and against arithmetic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import InputError, UnknownName
from stowplan.models import bytes_for, fitting_format, formats, kv_bytes_per_element, kv_formats, load_format


def test_sizes_agree_with_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants", reason="the gguf package is not installed")
    for kind, (block, size) in constants.GGML_QUANT_SIZES.items():
        ours = formats()[kind.name.lower()]
        assert (ours.ggml_id, ours.block, ours.block_bytes) == (int(kind), block, size)


@pytest.mark.parametrize(
    ("key", "bits"),
    [
        ("q4_k", 4.5),
        ("q6_k", 6.5625),
        ("iq1_s", 1.5625),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("iq4_ks", 4.25),
        ("iq2_kt", 2.125),
        ("iq6_k", 6.625),
        ("iq3_k", 3.4375),
        ("iq2_k", 2.375),
        ("iq1_s_r4", 1.5),
        ("awq", 4.15625),
        ("fp8", 8),
        ("3.42bpw", 3.42),
    ],
)
def test_bits_per_weight(key: str, bits: float) -> None:
    assert load_format(key).bits_per_weight == pytest.approx(bits)


def test_row_scales_count() -> None:
    assert bytes_for(load_format("iq2_kl"), 1, 1024) * 8 / 1024 == pytest.approx(2.7031, abs=1e-4)
    assert bytes_for(load_format("int8"), 10, 100) == 10 * 104
    assert bytes_for(load_format("fp8_block"), 130, 128, 3) == 3 * (130 * 128 + 2 * 4)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(formats())), st.integers(1, 300), st.integers(1, 5000), st.integers(1, 40))
def test_bytes_are_additive_and_fallbacks_always_fit(key: str, rows: int, columns: int, count: int) -> None:
    stored = fitting_format(load_format(key), columns)
    one = bytes_for(stored, rows, columns)
    assert bytes_for(stored, rows, columns, count) == count * one
    assert one >= rows * columns * stored.block_bytes / stored.block - 1e-6


def test_a_row_that_fits_no_block_is_refused() -> None:
    with pytest.raises(InputError, match="no multiple of its block of 256; use q5_0"):
        bytes_for(load_format("q4_k"), 1, 2880)
    assert fitting_format(load_format("q4_k"), 2880).key == "q5_0"
    assert fitting_format(load_format("q4_k"), 100).key == "f16"


def test_kv_formats() -> None:
    assert [kv_bytes_per_element(key) for key in ("f32", "f16", "bf16", "fp8")] == [4, 2, 2, 1]
    assert kv_bytes_per_element("q8_0") == pytest.approx(1.0625)
    assert kv_bytes_per_element("Q4_0") == pytest.approx(0.5625)
    for key in kv_formats():
        assert 0.5 < kv_bytes_per_element(key) <= 4
    with pytest.raises(UnknownName):
        kv_bytes_per_element("q6_k")
    with pytest.raises(UnknownName):
        load_format("q4_x")
