"""What ``numactl`` before a command does to its threads and pages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from stowplan.errors import InputError, NotExpressible

_INTERLEAVE = ("-i", "--interleave")
_THREADS = ("-N", "--cpunodebind")
_PAGES = ("-m", "--membind")
_CORES = ("-C", "--physcpubind")
_OTHER = ("-p", "--preferred", "-w", "--weighted-interleave")
_PLAIN = {"-i": "--interleave", "-N": "--cpunodebind", "-m": "--membind", "-C": "--physcpubind"}
_KNOWN = (*_INTERLEAVE, *_THREADS, *_PAGES, *_CORES, *_OTHER)
_LIST = re.compile(r"[+!]?(?:all|\d+(?:[-,]\d+)*)\Z")


@dataclass(frozen=True, slots=True)
class Numactl:
    """The policy and the command that it holds for.

    Attributes:
        policy: ``interleave`` (pages over all nodes), ``bind`` (threads and pages on one node), ``threads`` (only they
            are on one node) or None.
        command: the words after numactl's own.
        warning: what was understood only in part.
    """

    policy: Literal["interleave", "bind", "threads"] | None
    command: tuple[str, ...]
    warning: str | None = None


def read_numactl(words: Sequence[str]) -> Numactl:
    """The policy that leads a command; none where the first word is another program.

    Raises:
        InputError: an option without its list of nodes, or no command behind it.
        NotExpressible: an option that is not read; names it.
    """
    if not words or PurePath(words[0].replace("\\", "/")).name != "numactl":
        return Numactl(None, tuple(words))
    lists: dict[str, str] = {}
    position = 1
    while position < len(words) and words[position].startswith("-"):
        name, equals, nodes = words[position].partition("=")
        position += 1
        if name == "--":
            break
        if name not in _KNOWN:
            raise NotExpressible(f"numactl {name[:40]}: stowplan reads {', '.join(_KNOWN)}")
        if not equals:
            if position == len(words):
                raise InputError(f"numactl {name} needs a list of nodes or processors such as 0 or all")
            nodes, position = words[position], position + 1
        if not _LIST.match(nodes):
            raise InputError(f"numactl {name} {nodes[:40]}: must be a list of numbers such as 0 or 0-3, or all")
        lists[_PLAIN.get(name, name)] = nodes
    if position >= len(words):
        raise InputError("numactl has no command behind it; write it as you run it: numactl -N 0 -m 0 llama-server ...")
    policy, warning = _meant(lists)
    return Numactl(policy, tuple(words[position:]), warning)


def _meant(lists: Mapping[str, str]) -> tuple[Literal["interleave", "bind", "threads"] | None, str | None]:
    """Policy of the lists of nodes and processors by option, and what of them is not priced."""
    if "--interleave" in lists:
        every = lists["--interleave"] == "all"
        return "interleave", None if every else f"numactl --interleave={lists['--interleave']}: priced as all nodes"
    threads = lists.get("--cpunodebind", "").isdigit() or "--physcpubind" in lists
    if threads and lists.get("--membind", "").isdigit():
        return "bind", None
    if lists.get("--cpunodebind", "").isdigit():
        return "threads", None
    if not lists:
        return None, None
    name, nodes = next(iter(lists.items()))
    return None, f"numactl {name}={nodes}: not priced; bind to one node with -N 0 -m 0 or interleave over all"
