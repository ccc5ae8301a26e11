"""llama.cpp's command line as people write it: flags of llama-server, llama-cli and llama-bench, read and checked.

What a flag sets is in `stowplan.systems.llama_cpp_words`; what it means for placement is decided in
`stowplan.systems.llama_cpp_reading`. A flag that is given twice with two values is refused: the engine takes the last
one, and whoever wrote the first one expects something else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from stowplan.errors import InputError, NotExpressible
from stowplan.systems.llama_cpp_words import (
    ENVIRONMENT,
    FORK_SWITCHES,
    FORK_VALUES,
    HANDLERS,
    IGNORED_SWITCHES,
    IGNORED_VALUES,
    OPPOSITES,
    QUIET,
    REPEATABLE,
    SWITCHED_OFF,
    SWITCHES,
    TRUTH,
    USUAL,
    Flags,
)
from stowplan.systems.numactl import read_numactl

PROGRAMS = ("llama-server", "llama-cli", "llama-bench", "llama-completion", "llama-sweep-bench", "llama-batched-bench")


def read_flags(words: Sequence[str]) -> Flags:
    """Flags of a llama.cpp command line, program name included.

    Raises:
        NotExpressible: a flag that is unknown, or whose meaning stowplan does not model; names the flag.
        InputError: a missing or malformed value, contradictory flags.
    """
    words = [word for word in words if word not in {"\\", "\n"}]  # continuation marks, as a shell or shlex leaves them
    named: list[str] = []
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0], re.DOTALL):
        named += _from_environment(words[0])
        words = words[1:]
    numactl = read_numactl(words)
    words = [*numactl.command]
    if not words:
        raise InputError(
            "the command after -- is empty; write it as you run it, such as: llama-server -m model.gguf -ngl 30"
        )
    program = PurePath(words[0].replace("\\", "/")).name.removesuffix(".exe")
    aliases = {"main": "llama-cli", "server": "llama-server"}
    flags = Flags(
        program=aliases.get(program, program), numactl=None if numactl.policy == "threads" else numactl.policy
    )
    flags.warnings += [numactl.warning] if numactl.warning else []
    if flags.program not in PROGRAMS:
        raise NotExpressible(
            f"'{words[0]}' is not a llama.cpp program that stowplan reads; it reads {', '.join(PROGRAMS)}"
        )
    words = [words[0], *named, *words[1:]]
    position = 1
    while position < len(words):
        word = words[position]
        name, equals, attached = word.partition("=")
        if word.startswith("--") and equals and (name in HANDLERS or name in IGNORED_VALUES):
            words = [*words[:position], name, attached, *words[position + 1 :]]
            word = name
        position += _consume(flags, word, words[position + 1] if position + 1 < len(words) else None)
    _check_together(flags)
    if numactl.policy == "threads" and flags.numa in (None, "numactl"):
        flags.numa = "isolate"  # threads on one node, pages where they are touched
    if flags.batch < flags.ubatch:
        flags.warnings.append(f"-b {flags.batch} is smaller than -ub {flags.ubatch}; a pass holds {flags.batch} tokens")
    return flags


def _consume(flags: Flags, word: str, value: str | None) -> int:
    """Apply one flag; the number of words it took."""
    if word in IGNORED_SWITCHES:
        flags.ik |= word in FORK_SWITCHES
        return 2 if flags.bench and value in {"0", "1"} else 1
    if word in SWITCHES and not (flags.bench and value is not None and value.split(",")[0] in {"0", "1"}):
        if _once(flags, word, ""):
            SWITCHES[word](flags)
        return 1
    if word in {"-fa", "--flash-attn"} and (value is None or value.split(",")[0].lower() not in TRUTH):
        flags.flash_attention = True
        return 1  # older builds: a switch without value
    known = word in HANDLERS or word in IGNORED_VALUES or word in SWITCHES
    if not known:
        raise NotExpressible(
            f"stowplan does not know the flag '{word}' of {flags.program}; leave it out if it moves no bytes"
        )
    if value is None:
        raise InputError(f"{word} needs a value")
    if word in IGNORED_VALUES:
        flags.ik |= word in FORK_VALUES
        return 2
    if (
        flags.sweeps
        and word not in {"-ot", "--override-tensor", "-ts", "--tensor-split", "-m", "--model"}
        and "," in value
    ):
        flags.warnings.append(f"{word} {value} is a sweep; the first value is used")
        value = value.split(",")[0]
    if word in SWITCHES:  # llama-bench writes switches with 0 or 1
        if value == "1":
            SWITCHES[word](flags)
        elif word in SWITCHED_OFF:
            SWITCHED_OFF[word](flags)
        return 2
    if _once(flags, word, value):
        HANDLERS[word](flags, value)
    return 2


def _once(flags: Flags, word: str, value: str) -> bool:
    """Note that a flag is given; whether it still has to be applied.

    Raises:
        InputError: it is given already, with another value or as its opposite.
    """
    usual = USUAL.get(word, word)
    if usual in REPEATABLE:
        return True
    told = f"{usual} {value}".strip()
    before = flags.given.setdefault(OPPOSITES.get(usual, usual), told)
    if before == told:
        return True
    if flags.bench:
        flags.warnings.append(f"{before} and {told} are a sweep; the first value is used")
        return False
    raise InputError(f"'{before}' and '{told}' contradict each other; keep one of them")


def _check_together(flags: Flags) -> None:
    """Refuse flags that cannot both be meant.

    Raises:
        InputError: names both.
    """
    if flags.split_mode == "none" and sum(share > 0 for share in flags.split) > 1:
        raise InputError("-sm none uses one GPU and -ts divides layers over several; keep one of them")


def _from_environment(word: str) -> list[str]:
    """Flag and value of ``LLAMA_ARG_X=value``; nothing for a variable of something else."""
    name, _, value = word.partition("=")
    if not name.startswith("LLAMA_ARG_"):
        return []
    return environment_words(name, value)


def environment_words(name: str, value: str) -> list[str]:
    """The words that an environment variable of llama.cpp stands for.

    Raises:
        NotExpressible: a variable that stowplan does not know.
    """
    flag = ENVIRONMENT.get(name)
    if flag is None and name in QUIET:
        return []
    if flag is None:
        raise NotExpressible(f"stowplan does not know the variable {name[:60]}; leave it out if it moves no bytes")
    if flag in SWITCHES:
        return [flag] if TRUTH.get(value.lower(), True) else []
    return [flag, value]
