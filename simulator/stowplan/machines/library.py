"""Parts by name: from the shipped ``hwprofiles/``, from the user's own folder, or from one file of the user.

The environment variable ``STOWPLAN_PROFILES`` may name a folder laid out like ``hwprofiles/`` (``gpus/``, ``cpus/``
...); its files add parts or replace shipped ones of the same name. Only the files that are asked for are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, UnknownName
from stowplan.machines.machine import Cpu, Disk, Gpu, Link, Memory, Number, SourceKind
from stowplan.machines.schema import PartKind, read_part

PROFILES_VARIABLE = "STOWPLAN_PROFILES"
FOLDERS: Mapping[PartKind, str] = {
    "gpu": "gpus",
    "cpu": "cpus",
    "memory": "memory",
    "disk": "disks",
    "link": "links",
    "machine": "machines",
}
_KEY = re.compile(r"[a-z0-9][a-z0-9.-]{0,79}\Z")


def profile_folders() -> tuple[Path, ...]:
    """Folders that are searched, the user's own first."""
    own = os.environ.get(PROFILES_VARIABLE, "")
    shipped = data_folder("hwprofiles")
    return (Path(own).expanduser(), shipped) if own else (shipped,)


def list_keys(kind: PartKind) -> list[str]:
    """Sorted keys of all parts of one kind; no file is read."""
    found: set[str] = set()
    for folder in profile_folders():
        found.update(path.stem for path in (folder / FOLDERS[kind]).glob("*.toml") if _KEY.match(path.stem))
    return sorted(found)


def names_a_file(text: str) -> bool:
    """Whether a part is named by the path of a TOML file instead of by its key.

    ``#key``, in a machine's file, and ``machine.toml#key`` name a part that stands in the machine's own file.
    """
    return text.endswith(".toml") or text.startswith("#") or ".toml#" in text


def find_file(kind: PartKind, name: str) -> Path:
    """File of a part, by key or by path.

    Raises:
        UnknownName: no part of that kind has that key (carries the nearest keys).
    """
    if names_a_file(name):
        return Path(name).expanduser()
    if _KEY.match(name):
        for folder in profile_folders():
            path = folder / FOLDERS[kind] / f"{name}.toml"
            if path.is_file():
                return path
    raise UnknownName(kind, name, list_keys(kind))


def has_part(kind: PartKind, key: str) -> bool:
    """Whether a part of that kind has that key; no file is read."""
    return bool(_KEY.match(key)) and any(
        (folder / FOLDERS[kind] / f"{key}.toml").is_file() for folder in profile_folders()
    )


def kind_of_file(path: Path) -> PartKind:
    """What a file outside the profile folders describes, by its own ``kind`` (a machine where it does not say).

    Raises:
        BadFile: unreadable, or a kind that does not exist.
    """
    kind = read_raw(path).get("kind", "machine")
    for known in FOLDERS:
        if kind == known:
            return known
    raise BadFile(f"{path}: kind '{str(kind)[:64]}' is not one of {', '.join(FOLDERS)}")


def read_raw(path: Path) -> dict[str, Any]:
    """Contents of a TOML file, before the schema is applied.

    Raises:
        BadFile: missing, too large, not TOML, or nested or numbered beyond reason.
    """
    try:
        return read_toml(path)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: is not valid TOML ({error})") from error


def load_fields(kind: PartKind, name: str) -> tuple[str, dict[str, Any]]:
    """Key and checked fields of one part.

    Raises:
        UnknownName: no such part. BadFile, BadQuantity: its file is wrong.
    """
    file, inside, part = name.partition(".toml#")
    if inside:
        path = Path(f"{file}.toml").expanduser()
        parts = read_raw(path).get("parts")
        if not isinstance(parts, dict) or not isinstance(parts.get(part), dict):
            raise BadFile(f"{path}: '#{part}' is named, but there is no table [parts.{part}]")
        return part, read_part(kind, parts[part], f"{path}: parts.{part}")
    path = find_file(kind, name)
    return path.stem, read_part(kind, read_raw(path), str(path))


def load_gpu(name: str) -> Gpu:
    """GPU by key or file; raises as `load_fields`."""
    key, fields = load_fields("gpu", name)
    unified = fields.get("unified", False)
    if not unified and ("pcie_generation" not in fields or "pcie_lanes" not in fields):
        raise BadFile(f"{name}: a GPU that is not unified needs 'pcie_generation' and 'pcie_lanes'")
    if unified and "unified_share" not in fields:
        raise BadFile(f"{name}: a unified GPU needs 'unified_share', the share of the host's memory it may use")
    return Gpu(
        key=key,
        name=fields["name"],
        vendor=fields["vendor"],
        memory=fields["memory"],
        bandwidth=fields["bandwidth"],
        peaks=fields["peaks"],
        units=fields.get("units"),
        clock=fields.get("clock"),
        pcie_generation=0 if unified else fields["pcie_generation"],
        pcie_lanes=0 if unified else fields["pcie_lanes"],
        measured=fields.get("measured", {}),
        unified=unified,
        unified_share=fields.get("unified_share"),
        peer_link=fields.get("peer_link"),
        process=fields.get("process"),
        power=fields.get("power"),
        price=fields.get("price"),
    )


def load_cpu(name: str) -> Cpu:
    """CPU by key or file; raises as `load_fields`."""
    key, fields = load_fields("cpu", name)
    return Cpu(
        key=key,
        name=fields["name"],
        cores=fields["cores"],
        isa=fields["isa"],
        clock=fields["clock"],
        flops_per_cycle=fields["flops_per_cycle"],
        memory_channels=fields["memory_channels"],
        memory_kind=fields["memory_kind"],
        pcie_generation=fields["pcie_generation"],
        pcie_lanes=fields["pcie_lanes"],
        bandwidth_ceiling=fields.get("bandwidth_ceiling"),
        measured=fields.get("measured", {}),
        power=fields.get("power"),
        price=fields.get("price"),
        socket_link=fields.get("socket_link"),
        memory_clusters=fields.get("memory_clusters", 1),
    )


def load_memory(kind: str, channels: int, capacity: Number) -> Memory:
    """Memory of a kind such as ``ddr5-5600`` as fitted; raises as `load_fields`."""
    key, fields = load_fields("memory", kind)
    per_gib: Number | None = fields.get("price_per_gib")
    price = None
    if per_gib is not None:
        price = Number(per_gib.value * capacity.value / 2**30, per_gib.kind, per_gib.source, per_gib.sd)
    return Memory(key, fields["name"], channels, fields["channel_bandwidth"], capacity, price)


def load_disk(name: str, capacity: Number | None = None) -> Disk:
    """Disk by key or file, of another capacity where one is given; raises as `load_fields`."""
    key, fields = load_fields("disk", name)
    return Disk(
        key=key,
        name=fields["name"],
        capacity=capacity or fields["capacity"],
        read=fields["read"],
        write=fields["write"],
        latency=fields["latency"],
        page_fault_read=fields.get("page_fault_read"),
        price=fields.get("price"),
    )


def load_link(name: str) -> Link:
    """Link by key or file; raises as `load_fields`."""
    key, fields = load_fields("link", name)
    return Link(key, fields["name"], fields["bandwidth"], fields["latency"], fields.get("lanes"))


@cache
def shared_rates() -> Mapping[str, Number]:
    """Fractions and constants that hold for every machine, read once from ``hwprofiles/rates.toml``."""
    path = data_folder("hwprofiles") / "rates.toml"
    fields = read_part("rates", read_raw(path), str(path))
    return {name: value for name, value in fields.items() if isinstance(value, Number)}


def find_reported(kind: PartKind, reported: str) -> str | None:
    """Key of the part that a driver or ``/proc`` reports under this name, or None.

    Names are compared exactly once case, trademark signs and spaces are taken away.
    """
    wanted = normalised(reported)
    for key in list_keys(kind):
        raw = read_raw(find_file(kind, key))
        names = [raw.get("name"), *raw.get("reported", ())]
        if any(isinstance(name, str) and normalised(name) == wanted for name in names):
            return key
    return None


def normalised(name: str) -> str:
    """A reported name without case, trademark signs, punctuation and spaces."""
    plain = re.sub(r"\((?:r|tm|c)\)|[®™©]", " ", name.lower())
    plain = re.sub(r"\bcpu\b|\bprocessor\b|@.*$|\b\d+-core\b", " ", plain)
    return re.sub(r"[^a-z0-9]+", "", plain)


def given(value: float, source: str = "given by the user", kind: SourceKind = SourceKind.DATASHEET) -> Number:
    """A number that the user stated."""
    return Number(value, kind, source)
