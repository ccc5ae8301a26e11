"""One calibration from start to end: what is here, what that allows to measure, and the profile that comes of it."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

from stowplan.errors import InputError
from stowplan.machines.machine import Machine
from stowplan_calibrate.cuda_bench import gpu_suite
from stowplan_calibrate.derive import NothingMeasured, measured_machine
from stowplan_calibrate.host.nodes import read_nodes
from stowplan_calibrate.measuring import GROUPS, Entry, Surroundings, optional_library
from stowplan_calibrate.profile import machine_document, write_profile
from stowplan_calibrate.results import ResultsFolder
from stowplan_calibrate.suite import host_suite
from stowplan_calibrate.torch_runs import torch_suite


def chosen_groups(text: str | None) -> tuple[str, ...] | None:
    """Groups of measurements that ``--only`` names; None where it is not given.

    Raises:
        InputError: an unknown group.
    """
    if text is None:
        return None
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in GROUPS]
    if unknown or not names:
        raise InputError(f"--only {text[:60]}: it is one or more of {', '.join(GROUPS)}, separated by commas")
    return names


def look_around(machine: Machine, folder: Path, *, quick: bool) -> Surroundings:
    """What measurements may use on this computer.

    Raises:
        InputError: the folder for the disk's test file cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be made ({error.strerror or error})") from error
    return Surroundings(
        cores=machine.cores,
        memory=machine.memory.capacity.value,
        folder=folder,
        quick=quick,
        library=optional_library(),
        gpus=sum(gpu.vendor == "nvidia" and not gpu.unified for gpu in machine.gpus),
        nodes=max(1, len(read_nodes())),
    )


def whole_suite(around: Surroundings, groups: Collection[str] | None, python: str | None) -> list[Entry]:
    """Measurements of the chosen groups; GPU ones only where there is a GPU or they are asked for by name."""
    tool = around.library.compiler if around.library is not None else f"numpy, Python {platform.python_version()}"
    entries: list[Entry] = [*host_suite(tool), *torch_suite(around, python)]
    if around.gpus or (groups is not None and {"gpu", "pcie"} & set(groups)):
        entries += gpu_suite(around.gpus)
    return [entry for entry in entries if groups is None or entry.group in groups]


def save_profile(machine: Machine, results: ResultsFolder) -> Path:
    """``profile.toml`` in the results folder: the machine with everything measured so far.

    Raises:
        NothingMeasured: no figure of a profile was measured. BadFile: it cannot be written.
    """
    found = results.read()
    if not found.records:
        reasons = "; ".join(each.reason for each in found.skipped[:3])
        raise NothingMeasured(f"{results.folder}: nothing could be measured ({reasons or 'no measurement was chosen'})")
    path = results.folder / "profile.toml"
    write_profile(path, machine_document(measured_machine(machine, found)))
    return path
