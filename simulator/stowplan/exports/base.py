"""What every exporter does: bring a plan into the shape that its engine can take, write it, and read it back.

``read(files(nearest(plan))) == nearest(plan)``: what is written is what the engine will do, no less and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stowplan.errors import InputError
from stowplan.plan import Plan, Workload
from stowplan.systems.base import Setup

LONGEST_TEXT = 4 * 2**20
"""Bytes of the largest file of an engine that is read; a configuration has a few kilobytes."""


@dataclass(frozen=True, slots=True)
class Files:
    """What an engine takes.

    Attributes:
        contents: text by file name, in the order in which people should read them.
        main: the file that states the placement, which `Exporter.read` takes.
        command: words that run the engine with these files from inside their folder.
        check: words that let the engine itself, or its own tool, say what it makes of the files; empty where none can.
        check_says: what to look for in that check's output.
        undo: how to get back to the state before.
        notes: what the user should know.
    """

    contents: Mapping[str, str]
    main: str
    command: Sequence[str]
    check: Sequence[str] = ()
    check_says: str = ""
    undo: str = "Stop the process; nothing outside this folder is changed."
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Names:
    """What a plan says of itself that no engine's file states.

    Attributes:
        machine, set: machine text and overrides.
        model, quant: model reference and mix.
        workload: what is asked, where the file does not say.
        release: which rule ``-ngl`` follows, None for the engine's current one.
        built: when llama.cpp was built, None for the newest.
    """

    machine: str
    set: tuple[str, ...]
    model: str
    quant: str | None
    workload: Workload
    release: str | None = None
    built: str | None = None

    @staticmethod
    def of(plan: Plan) -> Names:
        """The names of a plan."""
        release, built = plan.settings.get("release"), plan.settings.get("built")
        return Names(plan.machine, tuple(plan.set), plan.model, plan.quant, plan.workload, release, built)


class Exporter(Protocol):
    """One engine: what of a plan it can take, and the words for it."""

    key: str
    title: str
    target: str
    """The versions that are written for."""

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """The plan that the engine can carry out and that is nearest to a given one; itself if it can.

        Raises:
            NotExpressible: the engine cannot run this model, mix or machine at all.
        """
        ...

    def files(self, setup: Setup, plan: Plan) -> Files:
        """A plan that `nearest` returned, in the engine's words."""
        ...

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The model that a file's text or a command names; None where it names none."""
        ...

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan that a file's text, or the words of a command, state.

        Raises:
            InputError, NotExpressible: something in it is wrong or unknown; names it.
        """
        ...


def plain_text(text: str | Sequence[str], engine: str) -> str:
    """The text of a file.

    Raises:
        InputError: words of a command were given, or more text than a configuration has.
    """
    if not isinstance(text, str):
        raise InputError(f"{engine} is configured by a file, not by a command; import the file itself")
    if len(text) > LONGEST_TEXT:
        raise InputError(f"the file is larger than 4 MiB, and a configuration of {engine} has a few kilobytes")
    return text
