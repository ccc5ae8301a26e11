"""Names under which the kernels of storage formats are rated."""

from __future__ import annotations

from functools import cache

from stowplan.models import formats, load_format

_FAMILIES = {
    "float": ("float", "float8"),
    "block": ("legacy", "integer", "microscaling", "int4"),
    "k": ("k-quant", "scaled"),
    "iq": ("i-quant", "iqk", "trellis", "ternary"),
}


@cache
def family(format_key: str) -> str:
    """Kernel family of a storage format: ``float``, ``block`` (plain small blocks), ``k`` or ``iq`` (codebooks)."""
    own = load_format(format_key).family
    return next(name for name, members in _FAMILIES.items() if own in members)


@cache
def kernel_names(format_key: str) -> tuple[str, ...]:
    """Names under which a format's kernels may be rated, the closest first: itself, its own family, its wide family.

    Rows that are interleaved for the CPU (``iq4_ks_r4``) hold the same numbers and count as the plain format.
    """
    stem, mark, rows = format_key.rpartition("_r")
    plain = stem if mark and rows.isdigit() else format_key
    return plain, load_format(format_key).family, family(format_key)


def kernels_of_scaled(quant: str) -> str | None:
    """The format whose kernels a mix of stated size (``iq2_k@226GiB``) runs; None for a mix of known formats."""
    base, at, _ = quant.lower().removeprefix("ud-").partition("@")
    if not at:
        return None
    if base in formats():
        return base
    if base == "mxfp4_moe":
        return "mxfp4"
    return "iq4_xs" if base.startswith("iq") else "q4_k"
