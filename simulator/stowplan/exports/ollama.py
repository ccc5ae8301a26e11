"""ollama: a Modelfile. It states how many layers are on GPUs; everything else follows the engine's own rules.

ollama starts llama-server: ``num_gpu N`` becomes ``-ngl N``, ``num_batch`` both ``-b`` and ``-ub``, and ``use_mmap
false`` ``--load-mode none``. Patterns of tensors have no parameter; the environment of ``ollama serve`` reaches
llama-server, but for every model that it serves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names, plain_text
from stowplan.ops import Part
from stowplan.plan import Plan, Workload, expand
from stowplan.planner.commands import Hints, understand
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import layers_only
from stowplan.systems.llama_cpp_commands import make_plan, model_file
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_PARAMETERS = frozenset({"num_gpu", "num_ctx", "num_batch", "num_thread", "use_mmap"})
_QUIET = frozenset(
    """
    temperature top_k top_p min_p seed stop repeat_penalty repeat_last_n num_predict num_keep typical_p
    presence_penalty frequency_penalty main_gpu use_mlock draft_num_predict
    """.split()  # noqa: SIM905
)
_INSTRUCTIONS = frozenset({"TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "RENDERER", "PARSER"})
_BATCH = 512
_SYSTEM = LlamaCpp()


class OllamaExporter:
    """Writer and reader of Modelfiles."""

    key = "ollama"
    title = "ollama"
    target = "ollama fb3076099 (August 2026), which runs upstream llama-server"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Whole layers: as many of the last ones on GPUs as the plan's own GPU memory takes.

        Raises:
            NotExpressible: sequences that run together share settings that a Modelfile does not have.
        """
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        settings = self._settings(plan)
        workload = plan.workload
        if workload.batch > 1:
            raise NotExpressible(
                f"a Modelfile has no parameter for {workload.batch} sequences at a time; set OLLAMA_NUM_PARALLEL and "
                "export a plan for one sequence"
            )
        workload = workload.model_copy(update={"context": workload.capacity})
        run = LlamaCppRun(own, workload, settings)
        count = self._count(run, own, plan) if own.machine.gpus else 0
        return self._plan(own, run, Names.of(plan), count)

    def _settings(self, plan: Plan) -> LlamaCppSettings:
        stated = plan.settings if plan.system == _SYSTEM.key else {}
        batch = int(min(stated.get("ubatch", _BATCH), stated.get("batch", _BATCH)))
        return LlamaCppSettings(
            ubatch=batch,
            batch=batch,
            threads=stated.get("threads"),
            load_mode="none" if stated.get("load_mode") == "none" else "mmap",
            margin=0,
        )

    def _count(self, run: LlamaCppRun, setup: Setup, plan: Plan) -> int:
        """Layers on GPUs: the plan's own where it keeps layers whole, else as many as fit beside its cache."""
        stated = expand(plan.layers, len(setup.model.layers), where="plan")
        on_gpu = [str(places.get(Part.MIXER.value)).startswith("gpu") for places in stated]
        whole = all(len({str(place) for place in places.values()}) == 1 for places in stated)
        if whole and sorted(on_gpu) == on_gpu:
            return sum(on_gpu)
        low, high = 0, len(on_gpu)
        while low < high:
            middle = (low + high + 1) // 2
            layers, output = layers_only(run, middle)
            memory = run.memory(layers, RAM, output)
            if all(use.used <= use.capacity for tier, use in memory.items() if tier != RAM):
                low = middle
            else:
                high = middle - 1
        return low

    def _plan(self, setup: Setup, run: LlamaCppRun, names: Names, count: int) -> Plan:
        words = ["llama-server", "-m", "x.gguf", "-ngl", str(count + 1 if count else 0)]
        return self._understood(words, setup, names, run.workload, run.settings)

    def _understood(
        self, words: Sequence[str], setup: Setup, names: Names, workload: Workload, settings: LlamaCppSettings
    ) -> Plan:
        """The placement of llama-server's own rule for a count of layers, under settings of the Modelfile."""
        hints = Hints(model=names.model, quant=names.quant, workload=workload, loaded=setup.model)
        found = understand(words, setup.machine, hints).plan
        layers = _SYSTEM.placement(setup, found)
        return make_plan(setup.machine, (names.model, names.quant), workload, settings, (layers, found.output))

    def files(self, setup: Setup, plan: Plan) -> Files:
        """The Modelfile."""
        settings = LlamaCppSettings.model_validate(plan.settings)
        layers = _SYSTEM.placement(setup, plan)
        count = sum(places.mixer != RAM for places in layers)
        source = model_file(setup.model, plan)
        if source == plan.model:  # the user's own file, relative to where the command is typed
            source = str(Path(source).absolute())
        lines = [f"FROM {source if '/' in source else './' + source}"]
        lines.append(f"PARAMETER num_gpu {count + 1 if count else 0}")
        lines.append(f"PARAMETER num_ctx {plan.workload.capacity}")
        lines.append(f"PARAMETER num_batch {settings.batch}")
        if settings.threads is not None:
            lines.append(f"PARAMETER num_thread {settings.threads}")
        lines.append(f"PARAMETER use_mmap {'false' if settings.load_mode == 'none' else 'true'}")
        name = re.sub(r"[^a-z0-9._-]", "-", setup.model.key.lower())
        return Files(
            contents={"Modelfile": "\n".join(lines) + "\n"},
            main="Modelfile",
            command=["ollama", "create", name, "-f", "Modelfile"],
            check=["ollama", "ps"],
            check_says="the share of the model on CPU and GPU, once it has answered a prompt",
            undo=f"Remove the model with: ollama rm {name}",
            notes=("num_gpu counts the output layer as the first one, as llama-server's -ngl does.",),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The model after ``FROM``."""
        lines = (line.split(None, 1) for line in plain_text(text, self.title).splitlines())
        return next((words[1].strip() for words in lines if len(words) == 2 and words[0].upper() == "FROM"), None)

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a Modelfile.

        Raises:
            InputError: an unknown instruction or parameter, a value of the wrong kind, a parameter given twice.
        """
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        given = _parameters(plain_text(text, self.title))
        batch = _whole(given, "num_batch", _BATCH, least=1)
        settings = LlamaCppSettings(
            ubatch=batch,
            batch=batch,
            threads=_whole(given, "num_thread", 0, least=0) or None,
            load_mode="none" if given.get("use_mmap") == "false" else "mmap",
            margin=0,
        )
        workload = names.workload.model_copy(update={"context": _whole(given, "num_ctx", 4096, least=1), "batch": 1})
        words = ["llama-server", "-m", "x.gguf"]
        if _whole(given, "num_gpu", -1, least=-1) >= 0:
            words += ["-ngl", given["num_gpu"]]
        return self._understood(words, own, names, workload, settings)


def _whole(given: dict[str, str], name: str, default: int, *, least: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < least:
        raise InputError(f"Modelfile: PARAMETER {name} {text[:40]}: must be a whole number of at least {least}")
    return int(text)


def _parameters(text: str) -> dict[str, str]:
    """Parameters of a Modelfile that move bytes."""
    found: dict[str, str] = {}
    inside = False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if raw.count('"""') % 2:
            inside = not inside
            continue
        if inside or not line or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction.upper() == "FROM" or instruction.upper() in _INSTRUCTIONS:
            continue
        name, _, value = rest.strip().partition(" ")
        if instruction.upper() != "PARAMETER" or not value.strip():
            raise InputError(f"Modelfile: line {number} is no instruction that ollama knows: '{line[:60]}'")
        if name in _QUIET:
            continue
        if name not in _PARAMETERS:
            raise InputError(f"Modelfile: line {number}: stowplan does not know the parameter '{name[:40]}'")
        if name in found:
            raise InputError(f"Modelfile: line {number}: {name} is given twice")
        found[name] = value.strip()
    if found.get("use_mmap", "true") not in ("true", "false"):
        raise InputError(f"Modelfile: PARAMETER use_mmap {found['use_mmap'][:40]}: must be true or false")
    return found
