"""From a command line that somebody runs to a plan: which engine it is, which model, and what its flags place where."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stowplan.errors import InputError, NotExpressible, UnknownName
from stowplan.machines.machine import Machine
from stowplan.models import identify_file_name, load_model
from stowplan.models.model import Model
from stowplan.plan import Plan, Workload
from stowplan.planner.predict import make_setup
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import automatic
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_flags import read_flags
from stowplan.systems.llama_cpp_offload import fuses_by_default
from stowplan.systems.llama_cpp_reading import placement_from, settings_from, workload_from
from stowplan.systems.llama_cpp_words import Flags

_RUNTIME_MARGIN = 0  # a given command is judged as it is; plans keep a margin of their own


@dataclass(frozen=True, slots=True)
class Understood:
    """A command, understood: the setup and plan that it means, and what was understood only in part."""

    setup: Setup
    plan: Plan
    system: str
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Hints:
    """What a command does not say.

    Attributes:
        model, quant: what its model file holds, where the file's name does not say.
        workload: prompt and generation to predict for, where the command does not say.
        release: which rule ``-ngl`` follows, see `LlamaCppSettings.release`; None for the engine's current one.
        ik: whether the engine is ik_llama.cpp, where no flag gives it away.
        built: day or month of the engine's build, see `LlamaCppSettings.built`; None for the newest.
        loaded: the model, where it is loaded already; `model` and `quant` then only name it.
        strict: refuse patterns that match no tensor, or all of them; otherwise they are warned of.
    """

    model: str | None = None
    quant: str | None = None
    workload: Workload = field(default_factory=Workload)
    release: str | None = None
    ik: bool = False
    built: str | None = None
    loaded: Model | None = None
    strict: bool = False


def understand(words: Sequence[str], machine: Machine, hints: Hints | None = None) -> Understood:
    """The plan that a command of llama.cpp, ik_llama.cpp, FlexGen or Accelerate means on a machine.

    Args:
        words: the command, split as a shell does.
        machine: where it runs.
        hints: what the command does not say.

    Raises:
        InputError, NotExpressible: a flag, value or model that cannot be understood; names it.
    """
    hints = hints or Hints()
    if any(word.startswith("flexgen") for word in words[:3]):
        return _understand_flexgen(words, machine, hints)
    if words and words[0] == "accelerate":
        return _understand_accelerate(words, machine, hints)
    return _understand_llama_cpp(words, machine, hints)


def _understand_flexgen(words: Sequence[str], machine: Machine, hints: Hints) -> Understood:
    from stowplan.systems.flexgen import Flexgen, model_of  # most commands are of another engine

    named = dict(zip(words, [*words[1:], ""], strict=True)).get("--model", "")
    key = hints.model or model_of(named)
    if key is None:
        raise NotExpressible(f"FlexGen runs OPT models, and --model is '{named}'; name one such as facebook/opt-30b")
    model = hints.loaded or load_model(key, hints.quant or "fp16")
    setup = make_setup(machine, model, Flexgen())
    plan = Flexgen().parse(words, setup, **_names(machine, key, hints.quant or "fp16"))
    return Understood(setup, plan, Flexgen.key, [])


def _understand_accelerate(words: Sequence[str], machine: Machine, hints: Hints) -> Understood:
    from stowplan.systems.accelerate import Accelerate

    if hints.model is None:
        raise InputError("a device map names no model; add --model NAME --quant FORMAT before --")
    model = hints.loaded or load_model(hints.model, hints.quant)
    setup = make_setup(machine, model, Accelerate())
    plan = Accelerate().parse(shlex.join(words), setup, **_names(machine, hints.model, model.quant))
    return Understood(setup, plan, Accelerate.key, [])


def _names(machine: Machine, model: str, quant: str) -> dict[str, Any]:
    return {"machine": machine.spec, "set": machine.settings, "model": model, "quant": quant}


def _understand_llama_cpp(words: Sequence[str], machine: Machine, hints: Hints) -> Understood:
    flags = read_flags(words)
    flags.ik |= hints.ik
    reference = _model_of(flags, hints.model, hints.quant)
    loaded = hints.loaded or load_model(*reference)
    settings = settings_from(flags, _RUNTIME_MARGIN)
    setup = make_setup(machine, loaded, LlamaCpp(), settings.engine)
    if hints.release is not None:
        settings = settings.model_copy(update={"release": hints.release})
    settings = settings.model_copy(update={"built": hints.built})
    if flags.flash_attention is None:
        fused = fuses_by_default(settings, bench=flags.bench)
        settings = settings.model_copy(update={"flash_attention": fused})
    asked = workload_from(flags, hints.workload)
    count = _layer_count(flags, loaded, settings.release)
    if count is None:
        run = LlamaCppRun(setup, asked, settings)
        layers, output = automatic(run)
        if flags.split:
            flags.warnings.append("-ts is not followed, because the engine chooses the layers; add -ngl")
        flags.warnings.append("-ngl is not given: the engine fits the layers by itself; its own rule is followed here")
    else:
        layers, output = placement_from(flags, machine, loaded, settings, count, strict=hints.strict)
    plan = make_plan(machine, reference, asked, settings, (layers, output))
    return Understood(setup, plan, LlamaCpp.key, flags.warnings)


def _layer_count(flags: Flags, model: Model, release: str) -> int | None:
    """The count after ``-ngl``; None where the engine would choose by itself."""
    if flags.layers is not None and flags.layers != -1:
        return flags.layers
    if flags.bench:
        return 99 if len(model.layers) < 99 else len(model.layers) + 1
    if release != "current":
        return 0
    return -2 if flags.overrides or not flags.fit else None


def _model_of(flags: Flags, model: str | None, quant: str | None) -> tuple[str, str | None]:
    """Model reference and mix: the user's word first, then the file, then the file's name."""
    if model is not None:
        return model, quant
    if flags.model is None:
        raise InputError(
            "the command names no model (-m FILE or -hf REPO:QUANT); add --model NAME --quant MIX before --"
        )
    if Path(flags.model).is_file():
        return flags.model, quant
    try:
        key, found = identify_file_name(flags.model)
    except UnknownName as error:
        raise InputError(
            f"-m {flags.model}: no such file, and {error}; name it with --model NAME --quant MIX"
        ) from error
    return key, quant or found
