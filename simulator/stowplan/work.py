"""What a task costs: amounts per resource and a fixed overhead.

Resources are named after the part of the machine that they belong to: ``gpu0.compute`` (device-seconds),
``gpu0.hbm``, ``gpu0.h2d``, ``host.dram``, ``ssd0.read`` (bytes), ``host.cores`` (core-seconds). A *rate* is what
the resource gives per second: bytes/s for a link or memory, 1.0 for one device, the number of cores for
``host.cores``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import ClassVar

from stowplan.errors import SimulationError

OVERHEAD = "overhead"


@dataclass(frozen=True, slots=True)
class Work:
    """Work vector of a task: immutable, addable, scalable, equal and hashed by content.

    Attributes:
        amounts: resource name to amount (bytes, device-seconds or core-seconds). Kept read-only, sorted by name,
            without zero entries.
        overhead_s: seconds of fixed latency before the work proper: launch, system call, synchronisation.

    Raises:
        SimulationError: an amount or the overhead is negative, infinite or not a number.
    """

    amounts: Mapping[str, float]
    overhead_s: float = 0.0

    zero: ClassVar[Work]

    def __post_init__(self) -> None:
        given = self.amounts
        kept: dict[str, float] = {}
        for name in sorted(given):
            amount = given[name]
            if not 0.0 <= amount < inf:
                raise SimulationError(f"{name}: an amount of work must be finite and not negative, but it is {amount}")
            if amount:
                kept[name] = float(amount)
        if not 0.0 <= self.overhead_s < inf:
            raise SimulationError(f"an overhead must be finite and not negative, but it is {self.overhead_s} s")
        object.__setattr__(self, "amounts", MappingProxyType(kept))
        object.__setattr__(self, "overhead_s", float(self.overhead_s))

    def __hash__(self) -> int:
        return hash((tuple(self.amounts.items()), self.overhead_s))

    def __reduce__(self) -> tuple[type[Work], tuple[dict[str, float], float]]:
        # A mapping proxy can be neither copied nor sent to another process, so both go through the constructor.
        return Work, (dict(self.amounts), self.overhead_s)

    def __add__(self, other: Work) -> Work:
        if not isinstance(other, Work):
            return NotImplemented
        total = dict(self.amounts)
        for name, amount in other.amounts.items():
            total[name] = total.get(name, 0.0) + amount
        return Work(total, self.overhead_s + other.overhead_s)

    def __mul__(self, factor: float) -> Work:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return Work({name: amount * factor for name, amount in self.amounts.items()}, self.overhead_s * factor)

    __rmul__ = __mul__

    def alone_s(self, rates: Mapping[str, float]) -> float:
        """Seconds that the task takes when nothing else runs: overhead plus the roofline of its amounts.

        Args:
            rates: amount per second of every resource that the work uses.

        Raises:
            SimulationError: a resource has no rate, a rate is not positive and finite, or the time overflows.
        """
        return self.overhead_s + self.roofline(rates)[0]

    def limiting(self, rates: Mapping[str, float]) -> str | None:
        """The resource that takes longest, ``'overhead'`` if the overhead takes longer still, None for no work.

        Equal times go to the resource whose name sorts first. Raises as `alone_s`.
        """
        fluid_s, name = self.roofline(rates)
        return OVERHEAD if self.overhead_s > fluid_s else name

    def roofline(self, rates: Mapping[str, float]) -> tuple[float, str | None]:
        """Seconds of the slowest resource, without the overhead, and its name; (0.0, None) for no amounts.

        Raises as `alone_s`.
        """
        longest, slowest = 0.0, None
        for name, amount in self.amounts.items():
            rate = rates.get(name)
            if rate is None:
                known = ", ".join(sorted(rates)) or "none"
                raise SimulationError(f"{amount:g} of work is on '{name}', which has no rate; known: {known}")
            if not 0.0 < rate < inf:
                raise SimulationError(f"{name}: a rate must be positive and finite, but it is {rate}")
            seconds = amount / rate
            if slowest is None or seconds > longest:
                longest, slowest = seconds, name
        if longest == inf:
            raise SimulationError(f"{slowest}: work of {self.amounts[slowest or '']:g} never ends at that rate")
        return longest, slowest


Work.zero = Work({})
