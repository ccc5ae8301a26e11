"""The forms' elementary operations on arrays of shapes."""

from __future__ import annotations

from typing import Any

import numpy as np


class Arrays:
    """`stowplan.kernel_forms.elementary.Elementary`, element by element."""

    def ceil(self, value: Any) -> Any:
        """Smallest whole number not below `value`."""
        return np.ceil(value)

    def larger(self, first: Any, second: Any) -> Any:
        """The larger of two."""
        return np.maximum(first, second)

    def smaller(self, first: Any, second: Any) -> Any:
        """The smaller of two."""
        return np.minimum(first, second)

    def pick(self, condition: Any, yes: Any, no: Any) -> Any:
        """`yes` where the condition holds, else `no`."""
        return np.where(condition, yes, no)

    def always(self, condition: Any) -> bool:
        """Whether the condition holds for every shape."""
        return bool(np.all(condition))


ARRAYS = Arrays()
