"""The few operations that the forms need besides arithmetic, so that one form serves a float and an array of shapes.

A step-time function evaluates one shape at a time in plain floats; a fit evaluates thousands of shapes at once. Forms
take an `Elementary` and never say which.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

Value = Any
"""A float, or an array of floats when a fit evaluates many shapes at once."""


class Elementary(Protocol):
    """Operations on floats, or on arrays element by element."""

    def ceil(self, value: Value) -> Value:
        """Smallest whole number not below `value`."""

    def larger(self, first: Value, second: Value) -> Value:
        """The larger of two."""

    def smaller(self, first: Value, second: Value) -> Value:
        """The smaller of two."""

    def pick(self, condition: Value, yes: Value, no: Value) -> Value:
        """`yes` where the condition holds, else `no`."""

    def always(self, condition: Value) -> bool:
        """Whether the condition holds for every shape; what follows from its contrary need not be worked out then."""


class Floats:
    """`Elementary` for plain floats."""

    def ceil(self, value: Value) -> Value:
        """Smallest whole number not below `value`."""
        return float(math.ceil(value))

    def larger(self, first: Value, second: Value) -> Value:
        """The larger of two."""
        return first if first > second else second

    def smaller(self, first: Value, second: Value) -> Value:
        """The smaller of two."""
        return first if first < second else second

    def pick(self, condition: Value, yes: Value, no: Value) -> Value:
        """`yes` where the condition holds, else `no`."""
        return yes if condition else no

    def always(self, condition: Value) -> bool:
        """Whether the condition holds."""
        return bool(condition)


FLOATS = Floats()


def overlap(first: Value, second: Value, sharpness: float) -> Value:
    """Time of two activities of one kernel that overlap: their sum at sharpness 1, the longer one at infinity."""
    return (first**sharpness + second**sharpness) ** (1.0 / sharpness)


def cached(size: Value, capacity: float, share: float) -> Value:
    """Time of reading `size` bytes, as a share of reading them from memory.

    Below `capacity` the bytes are still in the last-level cache from the run before and take `share` of the time. The
    fourth power makes the passage about as sharp as it was measured.
    """
    return 1.0 - (1.0 - share) / (1.0 + (size / capacity) ** 4)


def waves(blocks_per_unit: Value, quantised: float, on: Elementary) -> Value:
    """How many times one unit's worth of blocks runs one after another.

    Blocks that do not fill the last wave leave units idle; kernels that hold several blocks per unit, or hand out work
    as units become free, lose only a share `quantised` of that.
    """
    return quantised * on.ceil(blocks_per_unit) + (1.0 - quantised) * on.larger(blocks_per_unit, 1.0)
