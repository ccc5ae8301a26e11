"""One table of the fields that a file in ``hwprofiles/`` may hold, and the check of a file against it.

A physical number is always an inline table that says where it comes from::

    memory = { value = "24 GiB", source = "datasheet", where = "NVIDIA product page" }

with an optional ``sd`` (relative standard deviation). Counts such as cores, lanes and channels are plain integers;
their source is the file's own ``source`` and ``where``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stowplan.errors import BadFile, BadQuantity
from stowplan.machines.machine import Number, SourceKind
from stowplan.units import Dimension, parse_quantity

PartKind = Literal["gpu", "cpu", "memory", "disk", "link", "machine", "rates"]
Shape = Literal["number", "numbers", "count", "text", "texts", "flag"]

ARITHMETICS = ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")

_LARGEST: Mapping[Dimension, float] = {
    "bytes": 2.0**60,
    "bytes/s": 1e17,
    "flop/s": 1e21,
    "seconds": 3600.0,
    "hertz": 1e12,
    "watts": 1e7,
    "money": 1e9,
    "count": 1e6,
    "ratio": 1.0,
}
_HUGE = 10**30
_MAY_BE_ZERO = ("seconds", "watts", "money")


@dataclass(frozen=True, slots=True)
class Field:
    """What one field of a file means and how it is written.

    Attributes:
        shape: ``number`` (inline table with source), ``numbers`` (table of such numbers), ``count`` (plain integer),
            ``text``, ``texts`` (list) or ``flag``.
        dimension: what a number measures.
        members: for ``numbers``, the dimension of each member. A member may be refined by a configuration in a
            sub-table, as in ``[measured.read_bandwidth] "ddr5-6000x2" = {...}``; it is read as
            ``read_bandwidth:ddr5-6000x2``.
    """

    name: str
    shape: Shape
    required: bool
    meaning: str
    dimension: Dimension | None = None
    members: Mapping[str, Dimension] = field(default_factory=dict)


def _number(name: str, dimension: Dimension, meaning: str, *, required: bool = False) -> Field:
    return Field(name, "number", required, meaning, dimension)


def _count(name: str, meaning: str, *, required: bool = False) -> Field:
    return Field(name, "count", required, meaning, "count")


def _text(name: str, meaning: str, *, required: bool = False) -> Field:
    return Field(name, "text", required, meaning)


_COMMON = (
    _text("name", "name for people", required=True),
    _text("kind", "gpu, cpu, memory, disk, link or machine; only for a file outside the profile folders"),
    _text("source", "source kind of the plain counts: datasheet, measured, fitted or assumed"),
    _text("where", "where the plain counts were read"),
    _text("notes", "what a reader of the numbers should know"),
)
_REPORTED = Field("reported", "texts", False, "names under which drivers or /proc report the part")
_PRICE = _number("price", "money", "price in US dollars")
_POWER = _number("power", "watts", "board or package power")

SCHEMA: Mapping[PartKind, tuple[Field, ...]] = {
    "gpu": (
        *_COMMON,
        _text("vendor", "nvidia, amd, apple or intel", required=True),
        _number("memory", "bytes", "memory capacity; for unified memory the largest that is sold", required=True),
        _number("bandwidth", "bytes/s", "datasheet memory bandwidth", required=True),
        Field(
            "peaks",
            "numbers",
            True,
            "dense peak by arithmetic; matrix units with fp32 accumulation, except fp32 (vector) and int8",
            members=dict.fromkeys(ARITHMETICS, "flop/s"),
        ),
        _number("units", "count", "streaming multiprocessors, compute units or GPU cores"),
        _number("clock", "hertz", "boost clock"),
        _count("pcie_generation", "generation of the host interface; absent when unified"),
        _count("pcie_lanes", "lanes of the host interface; absent when unified"),
        Field(
            "measured",
            "numbers",
            False,
            "achieved figures",
            members={
                "read_bandwidth": "bytes/s",
                "copy_bandwidth": "bytes/s",
                "h2d_pinned": "bytes/s",
                "d2h_pinned": "bytes/s",
                "h2d_pageable": "bytes/s",
                "d2h_pageable": "bytes/s",
                "launch": "seconds",
                "graph_launch": "seconds",
                "gemm_fp16": "flop/s",
                "gemm_bf16": "flop/s",
                "gemm_fp8": "flop/s",
            },
        ),
        Field("unified", "flag", False, "whether its memory is the host's"),
        _number("unified_share", "ratio", "share of the host's memory that the GPU may use, when unified"),
        _text("peer_link", "key of the GPU-to-GPU link; absent for copies through the host"),
        _text("process", "process, which decides an operation's energy: n4, 8n, 12n, 16n, with HBM n4-hbm, n7-hbm"),
        _POWER,
        _PRICE,
        _REPORTED,
    ),
    "cpu": (
        *_COMMON,
        _count("cores", "physical cores of one socket; performance cores where kinds differ", required=True),
        Field("isa", "texts", True, "vector instruction sets"),
        _number("clock", "hertz", "sustained all-core clock", required=True),
        _number("flops_per_cycle", "count", "fp32 fused multiply-add FLOPs per core and cycle", required=True),
        _count("memory_channels", "64-bit memory channels of one socket", required=True),
        _text("memory_kind", "memory family such as ddr5; ddr4/ddr5 where it takes either", required=True),
        _count("pcie_generation", "generation of the socket's own lanes", required=True),
        _count("pcie_lanes", "lanes of one socket that accelerators can use", required=True),
        _text("socket_link", "key of the link that joins two sockets, all lanes together"),
        _count("memory_clusters", "groups of channels that are interleaved apart where an odd number is populated"),
        _number("bandwidth_ceiling", "bytes/s", "what the fabric between cores and memory passes"),
        Field(
            "measured",
            "numbers",
            False,
            "achieved figures of one socket, by memory configuration",
            members={"read_bandwidth": "bytes/s"},
        ),
        _POWER,
        _PRICE,
        _REPORTED,
    ),
    "memory": (
        *_COMMON,
        _number("channel_bandwidth", "bytes/s", "peak of one 64-bit channel", required=True),
        _number("price_per_gib", "money", "price of one GiB"),
    ),
    "disk": (
        *_COMMON,
        _number("capacity", "bytes", "capacity of the usual model; a machine may state another", required=True),
        _number("read", "bytes/s", "sequential read with large requests at depth", required=True),
        _number("write", "bytes/s", "sequential write with large requests at depth", required=True),
        _number("latency", "seconds", "one small read", required=True),
        _number("page_fault_read", "bytes/s", "reading through memory-mapped page faults"),
        _PRICE,
        _REPORTED,
    ),
    "link": (
        *_COMMON,
        _number(
            "bandwidth",
            "bytes/s",
            "raw bytes/s in each direction, of one lane where lanes = 1",
            required=True,
        ),
        _number("latency", "seconds", "time of an empty transfer", required=True),
        _count("lanes", "lanes that the bandwidth is for"),
    ),
    "machine": (
        *_COMMON,
        Field("gpus", "texts", False, "GPU keys in device order, such as rtx-4090 or 8x h100-sxm"),
        _text("cpu", "CPU key, such as ryzen-9-7950x or 2x epyc-9355", required=True),
        _text("memory", "kind x channels : capacity, such as ddr5-5600x2:128GiB", required=True),
        Field("disks", "texts", False, "disk keys in order of preference, such as samsung-990-pro:4TB"),
        _count("pcie_lanes", "lanes that each GPU gets, where the board decides"),
        _count("pcie_generation", "generation that each GPU gets, where the board decides"),
        _text("host_link", "key of a link that joins GPU and host instead of PCIe"),
        _text("peer", "key of the GPU-to-GPU link, where the GPU's own file does not say"),
        Field("network", "texts", False, "keys of network links"),
        _number("memory_bandwidth", "bytes/s", "read bandwidth of this machine's memory, all sockets"),
        _count("memory_nodes", "parts that firmware divides the memory into; one for each socket where absent"),
        _number("reserved", "bytes", "host memory that the operating system and other programs keep"),
    ),
    "rates": (
        *_COMMON,
        _number("dram_desktop", "ratio", "read bandwidth over peak, up to two channels", required=True),
        _number("dram_server", "ratio", "read bandwidth over peak, more than two channels", required=True),
        _number("gpu_read", "ratio", "GPU read bandwidth over datasheet", required=True),
        _number("link_pinned", "ratio", "pinned copies over raw link bandwidth", required=True),
        _number("link_pageable", "ratio", "pageable copies over pinned copies", required=True),
        _number("socket_link", "ratio", "reads of another socket's memory over the raw links", required=True),
        _number(
            "socket_link_of_dram",
            "ratio",
            "reads of another socket's memory over reads of its own, where nobody names the links",
            required=True,
        ),
        _number(
            "peer_through_host",
            "ratio",
            "GPU-to-GPU copies through the host over pinned copies",
            required=True,
        ),
        _number("page_fault_share", "ratio", "reading by page faults over sequential reading", required=True),
        _number("page_fault_ceiling", "bytes/s", "most that page faults deliver", required=True),
        _number("flop_energy_n4", "count", "joules per FLOP of large products on the board, process n4"),
        _number("flop_energy_n4-hbm", "count", "joules per FLOP of large products on the board, process n4 with HBM"),
        _number("flop_energy_8n", "count", "joules per FLOP of large products on the board, process 8n"),
        _number("launch", "seconds", "one small kernel in a stream", required=True),
        _number("graph_launch", "seconds", "one small kernel in a captured graph", required=True),
        _number("reserved", "bytes", "host memory kept by the system where a machine does not say", required=True),
    ),
}


def read_part(kind: PartKind, raw: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Checked and converted fields of one file: Number, dict of Number, int, str, tuple of str or bool by field name.

    Args:
        kind: what the file describes.
        raw: what the TOML file holds.
        file: its path, for error sentences.

    Raises:
        BadFile: an unknown or missing field, or a field of the wrong type.
        BadQuantity: a number without unit, of another dimension, or out of range.
    """
    fields = {each.name: each for each in SCHEMA[kind]}
    for name in raw:
        if name not in fields:
            raise BadFile(f"{file}: '{name}' is not a field of a {kind} file; {_nearest(name, fields)}")
    values: dict[str, Any] = {}
    for each in fields.values():
        if each.name in raw:
            values[each.name] = _READERS[each.shape](each, raw[each.name], f"{file}: {each.name}")
        elif each.required:
            raise BadFile(f"{file}: '{each.name}' is missing; it gives the {each.meaning}")
    if values.get("kind", kind) != kind:
        raise BadFile(f"{file}: kind is '{values['kind']}', but a {kind} is needed here")
    return values


def read_number(raw: object, dimension: Dimension, where: str) -> Number:
    """A number with its provenance from its inline table.

    Raises:
        BadFile: not a table of value, source, where and optionally sd, or an unknown source kind.
        BadQuantity: the value has no unit, one of another dimension, or is out of range.
    """
    if not isinstance(raw, dict):
        raise BadFile(
            f"{where}: {_shown(raw)} must be a table such as "
            '{ value = "24 GiB", source = "datasheet", where = "product page" }'
        )
    for name in raw:
        if name not in ("value", "source", "where", "sd"):
            raise BadFile(f"{where}: '{name}' does not belong to a number; it has value, source, where and sd")
    for name in ("value", "source", "where"):
        if name not in raw:
            raise BadFile(f"{where}: '{name}' is missing; a number has value, source and where")
    kinds = [kind.value for kind in SourceKind]
    if raw["source"] not in kinds:
        raise BadFile(f"{where}.source: {_shown(raw['source'])} is not one of {', '.join(kinds)}")
    if not isinstance(raw["where"], str) or not raw["where"].strip():
        raise BadFile(f"{where}.where: {_shown(raw['where'])} must say where the number was read")
    sd = raw.get("sd")
    if sd is not None and (isinstance(sd, bool) or not isinstance(sd, int | float) or not 0 <= sd <= 10):
        raise BadFile(f"{where}.sd: {_shown(sd)} must be a relative standard deviation between 0 and 10")
    value = bounded_quantity(raw["value"], dimension, f"{where}.value")
    return Number(value, SourceKind(raw["source"]), raw["where"], None if sd is None else float(sd))


def bounded_quantity(raw: object, dimension: Dimension, where: str) -> float:
    """SI value of a quantity that a machine can have: above zero and below any machine of this age.

    Raises:
        BadQuantity: no unit, one of another dimension, zero where that has no meaning, or absurdly large.
    """
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise BadQuantity(f"{where}: {_shown(raw)} must be a number with its unit, written as text")
    if isinstance(raw, int) and abs(raw) >= _HUGE:
        raise BadQuantity(f"{where}: {_shown(raw)} is larger than any machine has")
    value = parse_quantity(raw, dimension, where=where)
    if value == 0 and dimension not in _MAY_BE_ZERO:
        raise BadQuantity(f"{where}: {_shown(raw)} must be above zero")
    if value > _LARGEST[dimension]:
        raise BadQuantity(f"{where}: {_shown(raw)} is larger than any machine has; mind the unit")
    return value


def _read_number(each: Field, raw: object, where: str) -> Number:
    assert each.dimension is not None
    return read_number(raw, each.dimension, where)


def _read_numbers(each: Field, raw: object, where: str) -> dict[str, Number]:
    if not isinstance(raw, dict):
        raise BadFile(f"{where}: {_shown(raw)} must be a table of numbers")
    numbers: dict[str, Number] = {}
    for name, entry in raw.items():
        if name not in each.members:
            raise BadFile(f"{where}: '{name}' is not known there; {_nearest(name, each.members)}")
        dimension = each.members[name]
        if isinstance(entry, dict) and entry and "value" not in entry and "source" not in entry:
            for configuration, number in entry.items():
                at = f"{where}.{name}.{configuration}"
                numbers[f"{name}:{configuration}"] = read_number(number, dimension, at)
        else:
            numbers[name] = read_number(entry, dimension, f"{where}.{name}")
    return numbers


def _read_count(_: Field, raw: object, where: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise BadFile(f"{where}: {_shown(raw)} must be a plain whole number")
    return int(bounded_quantity(raw, "count", where))


def _read_text(_: Field, raw: object, where: str) -> str:
    if not isinstance(raw, str) or not raw.strip() or len(raw) > 4096:
        raise BadFile(f"{where}: {_shown(raw)} must be a text of 1 to 4096 characters")
    return raw


def _read_texts(each: Field, raw: object, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list) or len(raw) > 1024:
        raise BadFile(f"{where}: {_shown(raw)} must be a list of texts")
    return tuple(_read_text(each, entry, where) for entry in raw)


def _read_flag(_: Field, raw: object, where: str) -> bool:
    if not isinstance(raw, bool):
        raise BadFile(f"{where}: {_shown(raw)} must be true or false")
    return raw


_READERS = {
    "number": _read_number,
    "numbers": _read_numbers,
    "count": _read_count,
    "text": _read_text,
    "texts": _read_texts,
    "flag": _read_flag,
}


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"nearest: {', '.join(matches)}" if matches else f"it has {', '.join(known)}"


def _shown(raw: object) -> str:
    text = str(raw) if isinstance(raw, str | float | bool) else type(raw).__name__
    if isinstance(raw, int) and not isinstance(raw, bool):
        text = str(raw) if abs(raw) < _HUGE else "a huge integer"
    return f"'{text[:64]}'"
