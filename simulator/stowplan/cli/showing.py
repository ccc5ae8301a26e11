"""`stowplan show`: the facts of one thing, each number with its unit and where it was read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stowplan.cli.inputs import Set
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.cli.tables import Line
    from stowplan.machines.machine import Machine, Number
    from stowplan.machines.schema import PartKind
    from stowplan.models.model import Model
    from stowplan.units import Dimension

_HEADER = ["", "value", "known by", "where it was read"]
_COMMON_MIXES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs", "q2_k", "iq2_xxs")


def show(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="One of machine, gpu, cpu, disk, link, model, format, system.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which one; see `stowplan list`.")],
    set_: Set = None,
) -> None:
    """Show the facts of one thing."""
    from stowplan.cli.tables import print_lines

    if kind not in _SHOWN:
        raise InputError(f"nothing of the kind '{kind[:40]}' can be shown; it is one of {', '.join(_SHOWN)}")
    if set_ and kind != "machine":
        raise InputError(f"--set changes a machine, not a {kind}; use it with `stowplan show machine`")
    print_lines(_machine(name, set_ or []) if kind == "machine" else _SHOWN[kind](name))


def first_sentence(module: str) -> str:
    """What a system's file says of itself, up to the first full stop."""
    text = " ".join((sys.modules[module].__doc__ or "").split("\n\n")[0].split())
    return text.removesuffix(".")


def _machine(name: str, overrides: list[str]) -> list[Line]:
    from stowplan.cli.tables import Line, table
    from stowplan.figures import machine_figures
    from stowplan.machines import load_machine

    machine = load_machine(name, overrides)
    lines = [Line(f"  {machine.name}", "answer"), Line("")]
    rates = [
        [figure, _rate(figure, number), number.kind.value, number.source]
        for figure, number in machine_figures(machine).items()
        if not figure.endswith(("unit_clock", "lanes"))  # facts below, and a product of two of them
    ]
    lines += table(["what it reaches", *_HEADER[1:]], rates)
    for title, kind, part in _parts(machine):
        lines += [Line(""), Line(f"  {title}", "answer"), *table(_HEADER, list(_numbers(kind, part)))]
    return lines


def _parts(machine: Machine) -> Iterator[tuple[str, PartKind, object]]:
    for gpu in {each.key: each for each in machine.gpus}.values():
        count = sum(1 for each in machine.gpus if each.key == gpu.key)
        yield (f"{count} x {gpu.name}" if count > 1 else gpu.name), "gpu", gpu
    yield f"{machine.sockets} x {machine.cpu.name}, {machine.cpu.cores} cores each", "cpu", machine.cpu
    yield f"{machine.memory.name}, {machine.memory.channels} channels", "memory", machine.memory
    for disk in machine.disks:
        yield disk.name, "disk", disk


def _rate(figure: str, number: Number) -> str:
    """A figure of `machine_figures` in its unit."""
    from stowplan.units import format_rate, format_seconds

    if figure.endswith("power"):
        return f"{number.value:.0f} W"
    if figure.endswith("flop_energy"):
        return f"{1e12 * number.value:.1f} pJ/FLOP"
    if "clock" in figure:
        return format_rate(number.value, "Hz")
    if ".peak." in figure:
        return format_rate(number.value, "FLOP/s")
    return format_seconds(number.value) if figure.endswith("latency") else format_rate(number.value)


def _written(value: float, dimension: Dimension | None) -> str:
    """A number in the unit of its dimension."""
    from stowplan.units import format_bytes, format_rate, format_seconds

    by_dimension: Mapping[str, Callable[[float], str]] = {
        "bytes": format_bytes,
        "bytes/s": format_rate,
        "flop/s": lambda number: format_rate(number, "FLOP/s"),
        "seconds": format_seconds,
        "hertz": lambda number: format_rate(number, "Hz"),
        "watts": lambda number: f"{number:.0f} W",
        "money": lambda number: f"{number:,.0f} USD",
        "ratio": lambda number: f"{number:.3g}",
        "count": lambda number: f"{number:g}",
    }
    return by_dimension[dimension or "count"](value)


def _numbers(kind: PartKind, part: object) -> Iterator[list[str]]:
    """Rows of every number that a part has, in the order of the schema."""
    from stowplan.machines import SCHEMA, Memory

    if isinstance(part, Memory):  # as fitted, so no field of its file
        yield _row("capacity", part.capacity, "bytes")
    for each in SCHEMA[kind]:
        found = getattr(part, each.name, None)
        if each.shape == "number" and found is not None:
            yield _row(each.name, found, each.dimension)
        elif each.shape == "numbers" and found:
            for member, number in found.items():
                yield _row(f"{each.name} {member}", number, each.members[member.partition(":")[0]])


def _row(name: str, number: Number, dimension: Dimension | None) -> list[str]:
    return [name.replace("_", " "), _written(number.value, dimension), number.kind.value, number.source]


def _part(kind: PartKind, load: str) -> Callable[[str], list[Line]]:
    def shown(name: str) -> list[Line]:
        from stowplan import machines
        from stowplan.cli.tables import Line, table

        part: Any = getattr(machines, load)(name)
        return [Line(f"  {part.name}", "answer"), Line(""), *table(_HEADER, list(_numbers(kind, part)))]

    return shown


def _model(name: str) -> list[Line]:
    from stowplan.cli.tables import Line, labelled, table
    from stowplan.models import load_model, model_kv_bytes_per_token
    from stowplan.units import format_bytes

    model = load_model(name)
    lines = [Line(f"  {model.name}", "answer"), Line("")]
    lines += labelled("weights", f"{model.parameters / 1e9:.4g} B, {model.active_parameters / 1e9:.4g} B for a token")
    if model.published_parameters:
        lines += labelled("published", f"{model.published_parameters / 1e9:.4g} B")
    lines += labelled("layers", f"{len(model.layers)} of width {model.hidden}{_experts(model)}")
    cache = format_bytes(model_kv_bytes_per_token(model))
    smaller = format_bytes(model_kv_bytes_per_token(model, "q8_0", "q8_0"))
    lines += labelled("KV cache", f"{cache} per token in f16, {smaller} in q8_0; made for {model.max_context:,} tokens")
    lines += [*labelled("read in", model.origin), Line("")]
    return lines + table(["mix", "size", "bits per weight"], list(_sizes(name)), numbers=(1, 2))


def _experts(model: Model) -> str:
    routed = [layer.experts for layer in model.layers if layer.experts]
    return f", {len(routed)} of them with {routed[0].active} of {routed[0].total} experts per token" if routed else ""


def _sizes(name: str) -> Iterator[list[str]]:
    from stowplan.errors import StowplanError
    from stowplan.models import load_model
    from stowplan.units import format_bytes

    published = load_model(name)
    for mix in dict.fromkeys((published.quant, *_COMMON_MIXES)):
        try:
            model = published if mix == published.quant else load_model(name, mix)
        except StowplanError:  # a file that states its own formats comes in no other
            continue
        yield [mix, format_bytes(model.weight_bytes), f"{8 * model.weight_bytes / model.parameters:.2f}"]


def _format(name: str) -> list[Line]:
    from stowplan.cli.tables import Line, labelled
    from stowplan.models import kv_formats, load_format

    found = load_format(name)
    lines = [Line(f"  {found.name}", "answer"), Line("")]
    lines += labelled("size", f"{found.bits_per_weight:.5g} bits per weight, scales included")
    lines += labelled("block", f"{found.block} weights in {found.block_bytes:g} bytes")
    lines += labelled("family", found.family)
    lines += labelled("GGUF", f"type {found.ggml_id}" if found.ggml_id is not None else "not a type of GGUF files")
    lines += labelled("KV cache", "may be kept in it" if found.key in kv_formats() else "cannot be kept in it")
    return lines


def _system(name: str) -> list[Line]:
    from stowplan.cli.tables import Line, paragraph, table
    from stowplan.systems import list_systems, load_system

    if name not in list_systems():
        from stowplan.cli.showing_published import published_lines

        return published_lines(name)
    system = load_system(name)
    lines = [Line(f"  {system.title}", "answer"), Line("")]
    for text in (sys.modules[type(system).__module__].__doc__ or "").split("\n\n"):
        lines += [*paragraph(" ".join(text.split())), Line("")]
    return lines + table(["constant", *_HEADER[1:]], list(_constants(system.kernels)))


def _constants(engine: str) -> Iterator[list[str]]:
    """Rows of an engine's constants as its data file writes them."""
    from stowplan.datafiles import data_folder, read_toml

    def walk(prefix: str, table: Mapping[str, Any]) -> Iterator[list[str]]:
        for key, entry in table.items():
            if isinstance(entry, dict) and "value" in entry:
                yield [prefix + key, str(entry["value"]), str(entry["source"]), str(entry["where"])]
            elif isinstance(entry, dict):
                yield from walk(f"{prefix}{key}.", entry)

    yield from walk("", read_toml(data_folder("hwprofiles") / "kernels" / f"{engine}.toml"))


_SHOWN: Mapping[str, Callable[[str], list[Line]]] = {
    "machine": lambda name: _machine(name, []),
    "gpu": _part("gpu", "load_gpu"),
    "cpu": _part("cpu", "load_cpu"),
    "disk": _part("disk", "load_disk"),
    "link": _part("link", "load_link"),
    "model": _model,
    "format": _format,
    "system": _system,
}
