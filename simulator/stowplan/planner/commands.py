"""From a command line that somebody runs to a plan: which engine it is, which model, and what its flags place where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stowplan.errors import InputError, UnknownName
from stowplan.machines.machine import Machine
from stowplan.models import identify_file_name, load_model
from stowplan.models.model import Model
from stowplan.plan import Plan, Workload
from stowplan.planner.predict import make_setup
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.llama_cpp_auto import automatic
from stowplan.systems.llama_cpp_commands import make_plan, placement_from, settings_from, workload_from
from stowplan.systems.llama_cpp_flags import Flags, read_flags

_RUNTIME_MARGIN = 0  # a given command is judged as it is; plans keep a margin of their own


@dataclass(frozen=True, slots=True)
class Understood:
    """A command, understood: the setup and plan that it means, and what was understood only in part."""

    setup: Setup
    plan: Plan
    system: str
    warnings: list[str]


def understand(
    words: Sequence[str],
    machine: Machine,
    *,
    model: str | None = None,
    quant: str | None = None,
    workload: Workload | None = None,
    release: str | None = None,
) -> Understood:
    """The plan that a llama.cpp command means on a machine.

    Args:
        words: the command, split as a shell does.
        machine: where it runs.
        model, quant: what the command's model file holds, where its name does not say.
        workload: prompt and generation to predict for, where the command does not say.
        release: which rule ``-ngl`` follows, see `LlamaCppSettings.release`; None for the engine's current one.

    Raises:
        InputError, NotExpressible: a flag, value or model that cannot be understood; names it.
    """
    flags = read_flags(words)
    reference = _model_of(flags, model, quant)
    return _understand(flags, machine, load_model(*reference), reference, workload=workload, release=release)


def understand_loaded(
    words: Sequence[str],
    machine: Machine,
    model: Model,
    reference: tuple[str, str | None],
    *,
    workload: Workload | None = None,
    release: str | None = None,
    ik: bool = False,
) -> Understood:
    """As `understand`, for a model that is loaded already; `ik` says that the engine is ik_llama.cpp."""
    flags = read_flags(words)
    flags.ik |= ik
    return _understand(flags, machine, model, reference, workload=workload, release=release)


def _understand(
    flags: Flags,
    machine: Machine,
    loaded: Model,
    reference: tuple[str, str | None],
    *,
    workload: Workload | None,
    release: str | None,
) -> Understood:
    settings = settings_from(flags, _RUNTIME_MARGIN)
    setup = make_setup(machine, loaded, load_system("llama.cpp"), settings.engine)
    if release is not None:
        settings = settings.model_copy(update={"release": release})
    asked = workload_from(flags, workload or Workload())
    count = _layer_count(flags, loaded, settings.release)
    if count is None:
        run = LlamaCppRun(setup, asked, settings)
        layers, output = automatic(run)
        flags.warnings.append("-ngl is not given: the engine fits the layers by itself; its own rule is followed here")
    else:
        layers, output = placement_from(flags, machine, loaded, settings, count)
    plan = make_plan(machine, reference, asked, settings, (layers, output))
    return Understood(setup, plan, "llama.cpp", flags.warnings)


def _layer_count(flags: Flags, model: Model, release: str) -> int | None:
    """The count after ``-ngl``; None where the engine would choose by itself."""
    if flags.layers is not None and flags.layers != -1:
        return flags.layers
    if flags.bench:
        return 99 if len(model.layers) < 99 else len(model.layers) + 1
    if release != "current":
        return 0
    return -2 if flags.overrides else None


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
