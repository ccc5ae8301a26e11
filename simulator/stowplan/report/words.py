"""Plain words for tiers, resources and numbers on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stowplan.plan import Interval, Plan, Unseen
from stowplan.units import format_rate

_DEVICE = {"hbm": "memory", "compute": "kernels"}
_ROUNDS_UP = 0.9995  # three digits write anything from here on as 1
_PARTS = {"architecture": "the architecture ", "gpu": "a GPU like "}
_LINKS = {"h2d": "copies to", "d2h": "copies from"}
WHOLE = {
    "host.dram": "host DRAM",
    "host.cores": "CPU cores",
    "host.store": "storing the cache in RAM",
    "host.attention": "attention on the CPU",
    "host.copier": "one core's copies",
    "host.link": "link between sockets",
    "disk.faults": "page faults from SSD",
    "disk.read": "SSD reads",
    "disk.write": "SSD writes",
    "overhead": "launches and synchronisation",
    "peer": "copies between GPUs",
}


def three(value: float) -> str:
    """A number with three digits, never in exponent form where people expect none."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def seconds(value: float) -> str:
    """A wait in seconds, in milliseconds below one, in microseconds below one of those."""
    scale, unit = seconds_unit(value)
    return f"{three(value * scale)} {unit}"


def seconds_unit(value: float) -> tuple[float, str]:
    """Factor and unit that a duration of this size is written in."""
    if value >= _ROUNDS_UP or value == 0:
        return 1.0, "s"
    return (1e3, "ms") if value >= 1e-3 * _ROUNDS_UP else (1e6, "µs")


def interval(found: Interval, scale: float = 1.0) -> str:
    """Both ends of an interval."""
    return f"{three(found.low * scale)} – {three(found.high * scale)}"


def unseen(parts: Iterable[Unseen]) -> str:
    """Why an interval is wider than for what was measured, as a clause; empty where every part had a fitted record."""
    named = [f"{_PARTS[each.part]}{each.name}" for each in parts]
    return f"the interval is wider, since no fitted record had {' or '.join(named)}" if named else ""


def place(name: str, gpus: int = 1) -> str:
    """A tier: GPU, GPU 1, RAM, SSD."""
    if name.startswith("gpu") and name[3:].isdecimal():
        return "GPU" if gpus <= 1 else f"GPU {name[3:]}"
    return {"ram": "RAM", "disk": "SSD"}.get(name, name)


def resource(name: str, gpus: int) -> str:
    """A resource: 'host DRAM', 'GPU 1 memory'."""
    if name in WHOLE:
        return WHOLE[name]
    device, _, what = name.partition(".")
    if what in _LINKS:
        return f"{_LINKS[what]} {_the(device, gpus)}"
    return f"{place(device, gpus)} {_DEVICE[what]}" if what in _DEVICE else name.replace("_", " ")


def _the(device: str, gpus: int) -> str:
    """A GPU within a sentence."""
    name = place(device, gpus)
    return "the GPU" if name == "GPU" else name


def limit(name: str, share: float, rates: Mapping[str, float], held: str, gpus: int) -> str:
    """What a step waits for most, as the end of a sentence: '85 % of it reads experts from RAM at 55.4 GB/s'.

    Args:
        name: the limiting resource.
        share: its share of the step.
        rates: what each resource gives per second.
        held: what is read from host memory: weights, experts, the cache.
        gpus: number of GPUs of the machine.
    """
    return f"{100 * share:.0f} % of it {doing(name, rates, held, gpus)}"


def doing(name: str, rates: Mapping[str, float], held: str, gpus: int) -> str:
    """What a step does while it waits for a resource; arguments as those of `limit`."""
    device, _, what = name.partition(".")
    rate = f" at {format_rate(rates[name])}" if name in rates and what not in {"compute", "cores"} else ""
    gpu = _the(device, gpus)
    by_name = {
        "host.dram": f"reads {held} from RAM{rate}",
        "host.cores": f"computes with {held} on the CPU's cores",
        "host.store": "puts new entries of the cache into RAM",
        "host.attention": "attends on the CPU",
        "host.copier": f"has one core copy pageable weights for the GPU{rate}",
        "host.link": f"reads {held} from the other socket{rate}",
        "disk.faults": f"waits for pages of the model file{rate}",
        "disk.read": f"reads from SSD{rate}",
        "disk.write": f"writes to SSD{rate}",
        "overhead": "launches kernels and waits for small copies",
        "peer": f"copies between GPUs{rate}",
    }
    by_device = {
        "hbm": f"reads the memory of {gpu}{rate}",
        "compute": f"runs at the speed of the kernels on {gpu}, not of its memory",
        "h2d": f"brings weights and activations to {gpu}{rate}",
        "d2h": f"brings results back from {gpu}{rate}",
    }
    return by_name.get(name) or by_device.get(what) or f"goes to {resource(name, gpus)}"


def held_in_ram(plan: Plan) -> str:
    """What a step reads from host memory, in words."""
    found: dict[str, None] = {}
    for run in plan.layers:
        for part, where in run.places.items():
            if where == "ram" or (not isinstance(where, str) and where.get("ram")):
                found["the cache" if part == "kv" else "experts" if part.endswith("_exps") else "weights"] = None
    if "weights" in found:
        found.pop("experts", None)
    return " and ".join(sorted(found, key=lambda name: (name == "the cache", name))) or "weights"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers with runs contracted: '0–70, 73, 76'."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs)


def count(number: int, one: str, many: str | None = None) -> str:
    """'1 layer', '94 layers'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
