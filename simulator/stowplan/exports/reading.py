"""From any file or command of any engine to a plan: whose words they are, for which model, and what goes where."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from stowplan.errors import BadFile, InputError, NotExpressible, UnknownName
from stowplan.exports import list_engines, load_exporter
from stowplan.exports.base import LONGEST_TEXT, Exporter, Names
from stowplan.exports.scripts import script_words
from stowplan.machines.machine import Machine
from stowplan.models import identify_file_name, load_model
from stowplan.models.model import Model
from stowplan.plan import Plan, Workload
from stowplan.planner.commands import Hints, understand
from stowplan.planner.predict import make_setup
from stowplan.systems import list_systems, load_system
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp

_BY_PROGRAM = {"vllm": "vllm", "sglang": "sglang"}
_BY_MODULE = {
    "vllm.entrypoints.openai.api_server": "vllm",
    "sglang.launch_server": "sglang",
    "sglang": "sglang",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a file or a command does not say.

    Attributes:
        machine: where it runs.
        model, quant: what it runs, where the text does not name it.
        workload: what is asked.
        engine: whose words they are; None to find out.
        release: which rule ``-ngl`` follows.
        loaded: the model, where it is loaded already.
    """

    machine: Machine
    model: str | None = None
    quant: str | None = None
    workload: Workload = field(default_factory=Workload)
    engine: str | None = None
    release: str | None = None
    loaded: Model | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """A plan that was read, its setup, and what was understood only in part."""

    setup: Setup
    plan: Plan
    warnings: list[str]


def read_command(words: Sequence[str], told: Told) -> Imported:
    """The plan of a command.

    Raises:
        InputError, NotExpressible: something in it is wrong or unknown; names it.
    """
    engine = told.engine or _engine_of_words(words)
    if engine is not None and engine not in ("accelerate", "flexgen") and not engine.endswith("llama.cpp"):
        return _with_exporter(engine, list(words), told)
    hints = Hints(
        model=told.model,
        quant=told.quant,
        workload=told.workload,
        release=told.release,
        ik=engine == "ik_llama.cpp",
        loaded=told.loaded,
        strict=True,
    )
    found = understand(words, told.machine, hints)
    return Imported(found.setup, found.plan, list(found.warnings))


def read_file(path: Path, told: Told) -> Imported:
    """The plan of a configuration file, a script or a plan file.

    Raises:
        BadFile: it cannot be read, or is larger than 4 MiB.
        InputError, NotExpressible: something in it is wrong or unknown; names it.
    """
    text = _text(path)
    engine = told.engine or _engine_of_text(path.name, text)
    if engine is None:
        return read_command(script_words(text), told)
    return _with_exporter(engine, text, told)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST_TEXT:
            raise BadFile(f"{path}: larger than 4 MiB; a configuration of an engine has a few kilobytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise BadFile(f"{path}: is not text ({error})") from error


def _with_exporter(engine: str, text: str | list[str], told: Told) -> Imported:
    exporter = load_exporter(engine)
    model, quant = _reference(exporter, text, told)
    loaded = told.loaded or load_model(model, quant)
    setup = _setup(told.machine, loaded, engine)
    names = Names(told.machine.spec, tuple(told.machine.settings), model, quant, told.workload, told.release)
    return Imported(setup, exporter.read(text, setup, names), [])


def _setup(machine: Machine, model: Model, engine: str) -> Setup:
    """The setup with the figures of the engine's own system, or of llama.cpp where it has none."""
    fork = engine if engine == "ik_llama.cpp" else None
    return make_setup(machine, model, load_system(engine) if engine in list_systems() else LlamaCpp(), fork)


def _reference(exporter: Exporter, text: str | list[str], told: Told) -> tuple[str, str | None]:
    if told.model is not None:
        return told.model, told.quant
    named = exporter.model_named(text)
    if named is None:
        raise InputError(f"the configuration of {exporter.title} names no model; add --model NAME --quant MIX")
    if Path(named).exists():
        return named, told.quant
    try:
        key, found = identify_file_name(named)
    except UnknownName as error:
        raise InputError(f"{named[:60]}: {error}; name it with --model NAME --quant MIX") from error
    return key, told.quant or found


def _engine_of_words(words: Sequence[str]) -> str | None:
    """The engine whose program a command starts; None for those that `understand` tells apart by itself."""
    plain = [word for word in words if not ("=" in word and word.split("=")[0].isupper())]
    if not plain:
        return None
    program = PurePath(plain[0].replace("\\", "/")).name
    if program.startswith("python") and len(plain) > 2 and plain[1] == "-m":
        return _BY_MODULE.get(plain[2])
    return _BY_PROGRAM.get(program)


def _engine_of_text(name: str, text: str) -> str | None:
    """The engine that a file is for, by its name and what is in it; None for a script."""
    lower = name.lower()
    if lower.startswith("modelfile") or lower.endswith(".modelfile"):
        return "ollama"
    if lower.endswith(".ini"):
        return "llama.cpp"
    if lower.endswith(".py"):
        return "accelerate"
    if lower.endswith((".yaml", ".yml")):
        return _engine_of_yaml(text)
    return _engine_of_json(name, text) if lower.endswith(".json") else None


def _engine_of_yaml(text: str) -> str:
    keys = {line.partition(":")[0].strip() for line in text.splitlines() if line[:1].strip()}
    if keys & {"chunk_size", "local_cpu", "max_local_cpu_size", "local_disk", "max_local_disk_size"}:
        return "lmcache"
    if any(key.startswith("kt-") for key in keys):
        return "ktransformers"
    sglang = {"model-path", "mem-fraction-static", "enable-hierarchical-cache", "chunked-prefill-size"}
    return "sglang" if keys & sglang else "vllm"


def _engine_of_json(name: str, text: str) -> str:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{name}: must be an object; it is no configuration of {', '.join(list_engines())}")
    if str(data.get("schema_version", "")).startswith("stowplan."):
        raise NotExpressible(f"{name} is a plan of stowplan already; give it to `stowplan predict`")
    return "deepspeed" if "zero_optimization" in data else "accelerate"


def split_command(text: str) -> list[str]:
    """Words of a whole command that came in one pair of quotes.

    Raises:
        InputError: unbalanced quotes.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"the command cannot be split into words ({error}): '{text[:60]}'") from error
