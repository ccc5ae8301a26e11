"""What serving costs: energy and money per million tokens.

Energy is the power of the board and package while the engine runs a step, and a share of it while it waits; so it is
an upper estimate where a step does not use the whole board. A machine's price is spread over three years of continuous
use, the usual depreciation of servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from stowplan.errors import InputError
from stowplan.machines.machine import Machine
from stowplan.serving.outcome import Replay

_IDLE_SHARE = 0.2
"""Power of an idle board as a share of its limit: assumed; an H100 SXM idles at about 70 to 120 W of 700 W."""
_LIFETIME_S = 3 * 365.25 * 86400.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one replay; None where the profile lacks what it takes.

    Attributes:
        joules_per_token: energy per generated token.
        kwh: energy in all.
        usd_per_million: money per million generated tokens: the machine's share of its price, or what it is rented for,
            and electricity.
    """

    joules_per_token: float | None
    kwh: float | None
    usd_per_million: float | None


def check_prices(machine: Machine, usd_per_hour: float | None, usd_per_kwh: float | None) -> None:
    """Refuse prices that `costs_of` could not use.

    Raises:
        InputError: a price that is negative or not finite, rent and electricity together, or electricity for a machine
            whose own price or power nobody knows.
    """
    for name, price in (("rent", usd_per_hour), ("electricity", usd_per_kwh)):
        if price is not None and not (isfinite(price) and price >= 0.0):
            raise InputError(f"--{name} {price:g}: a price is a finite number that is not negative")
    if usd_per_kwh is None:
        return
    if usd_per_hour is not None:
        raise InputError("--electricity: a machine's rent includes it; leave out --rent or --electricity")
    if not _known(machine):
        raise InputError(
            f"--electricity: {machine.name} has a GPU whose price or power is not known, so that nothing can be summed "
            f"up; leave it out or give --rent"
        )


def _known(machine: Machine) -> bool:
    return bool(machine.gpus) and all(gpu.price is not None and gpu.power is not None for gpu in machine.gpus)


def costs_of(
    replay: Replay, machine: Machine, *, usd_per_hour: float | None = None, usd_per_kwh: float | None = None
) -> Costs:
    """Energy and money of a replay.

    Args:
        replay: what happened; every engine is one machine.
        machine: what it ran on.
        usd_per_hour: rent of one machine, electricity included; None to spread its price.
        usd_per_kwh: price of electricity for a machine that is owned; None to leave it out.
    """
    tokens = int(replay.made_tokens.sum())
    span = max((engine.ended_s for engine in replay.engines), default=0.0) - _first_arrival(replay)
    if not tokens or span <= 0.0:
        return Costs(None, None, None)
    power = [part.power.value for part in machine.gpus if part.power is not None]
    joules = None
    if len(power) == len(machine.gpus) and power:
        cpu = machine.cpu.power.value * machine.sockets if machine.cpu.power is not None else 0.0
        busy = sum(engine.busy_s for engine in replay.engines)
        idle = max(0.0, span * len(replay.engines) - busy)
        joules = (sum(power) + cpu) * (busy + _IDLE_SHARE * idle)
    kwh = None if joules is None else joules / 3.6e6
    money = None
    if usd_per_hour is not None:
        money = usd_per_hour * span / 3600.0 * len(replay.engines)
    else:
        prices = [gpu.price.value for gpu in machine.gpus if gpu.price is not None]
        if prices and len(prices) == len(machine.gpus):
            cpu = machine.cpu.price.value * machine.sockets if machine.cpu.price is not None else 0.0
            money = (sum(prices) + cpu) * span / _LIFETIME_S * len(replay.engines)
            if usd_per_kwh is not None and kwh is not None:
                money += usd_per_kwh * kwh
    return Costs(None if joules is None else joules / tokens, kwh, None if money is None else money / tokens * 1e6)


def _first_arrival(replay: Replay) -> float:
    arrivals = replay.requests.arrival_s
    return float(arrivals[0]) if len(arrivals) else 0.0
