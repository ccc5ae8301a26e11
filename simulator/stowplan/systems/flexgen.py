"""FlexGen: weights, cache and hidden states split over GPU, host memory and disk, in an overlapped block schedule.

Expressible: six percentages, the shape of a block, CPU attention, 4-bit groups, overlap; see `flexgen_policy` for what
the percentages become and `flexgen_execution` for the schedule. FlexGen itself runs OPT models only; any model with a
cache can be evaluated.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from stowplan.engine.graph import Graph
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.models.model import Recurrence
from stowplan.plan import Plan, Workload, checked_workload, expand, run_lengths
from stowplan.systems.base import Evaluation, Setup
from stowplan.systems.flexgen_execution import FlexgenRun, Placement
from stowplan.systems.flexgen_memory import FlexgenMemory
from stowplan.systems.flexgen_policy import (
    FlexgenSettings,
    checked,
    edge_groups,
    layer_places,
    settings_of,
    table_home,
)
from stowplan.systems.serial import Price
from stowplan.units import format_bytes

_MODEL = re.compile(r"(?:facebook/)?(opt-[0-9.]+b)\Z")
_IGNORED = ("path", "offload-dir", "debug-mode", "log-file", "no-log", "verbose")
_PROGRAMME = ("python", "python3", "-m", "flexgen.flex_opt", "flexllmgen.flex_opt")


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise NotExpressible(f"FlexGen command: {message}")


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "t", "y", "1"):
        return True
    if text.lower() in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def _arguments() -> _Arguments:
    """FlexGen's flags with its own defaults."""
    parser = _Arguments(prog="flexgen.flex_opt", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default="facebook/opt-6.7b")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--gpu-batch-size", type=int, default=4)
    parser.add_argument("--num-gpu-batches", type=int, default=1)
    parser.add_argument("--percent", type=int, nargs=6, default=[100, 0, 100, 0, 100, 0])
    for flag, default in (("--sep-layer", True), ("--pin-weight", True), ("--overlap", True)):
        parser.add_argument(flag, type=_boolean, nargs="?", const=True, default=default)
    for flag in ("--cpu-cache-compute", "--compress-weight", "--compress-cache"):
        parser.add_argument(flag, action="store_true")
    for flag in _IGNORED:
        parser.add_argument(f"--{flag}", nargs="?")
    parser.add_argument("--cut-gen-len", type=int)
    parser.add_argument("--attn-sparsity", type=float, default=1.0)
    return parser


class Flexgen:
    """FlexGen as a system."""

    key = "flexgen"
    title = "FlexGen"
    kernels = "flexgen"

    def plan(self, setup: Setup, workload: Workload, settings: FlexgenSettings, **names: Any) -> Plan:
        """Plan with the places that FlexGen realises for some settings.

        Args:
            setup: model, machine and figures.
            workload: prompt and generated tokens; its batch becomes that of the block.
            settings: percentages and switches.
            names: ``machine``, ``model``, ``set`` and ``quant`` as the user wrote them.

        Raises:
            NotExpressible: a combination that FlexGen refuses.
        """
        checked(settings)
        model = setup.model
        first, last = edge_groups(model)
        given: dict[str, Any] = {
            "machine": setup.machine.spec,
            "model": model.key,
            "quant": model.quant,
        } | names
        return Plan(
            system=self.key,
            workload=workload.model_copy(update={"batch": settings.batch}),
            layers=run_lengths(layer_places(layer, settings) for layer in model.layers),
            embedding=table_home(first, settings),
            output=table_home(last, settings),
            settings=settings.model_dump(mode="json"),
            **given,
        )

    def run(self, setup: Setup, plan: Plan) -> FlexgenRun:
        """The engine under the plan's settings.

        Raises:
            NotExpressible: settings that FlexGen refuses, places that its rounding does not give, a recurrent model.
        """
        settings = settings_of(plan)
        if any(isinstance(layer.mixer, Recurrence) for layer in setup.model.layers):
            raise NotExpressible(f"{setup.model.name} has recurrent layers, which FlexGen has no cache for")
        places = expand(plan.layers, len(setup.model.layers), where="plan")
        for layer, stated in zip(setup.model.layers, places, strict=True):
            realised = layer_places(layer, settings)
            if stated != realised:
                part = next(name for name in sorted({*stated, *realised}) if stated.get(name) != realised.get(name))
                percent = " ".join(map(str, settings.percent))
                raise NotExpressible(
                    f"plan: layer {layer.index}: {part} is on {stated.get(part)}, but --percent {percent} puts it on "
                    f"{realised.get(part)}"
                )
        return FlexgenRun(setup, plan.workload, settings)

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory of a plan.

        ``decode_s`` is the mean over the generated tokens by Simpson's rule on the first, middle and last context: step
        time is convex and piecewise linear in the context, so the rule is exact but for a kink between those three.

        Raises:
            NotExpressible: see `run`.
            DoesNotFit: a tier would hold more than its capacity.
        """
        run = self.run(setup, plan)
        placement = Placement.of(run.settings)
        memory = FlexgenMemory(run).use(placement)
        for tier, use in memory.items():
            if use.used > use.capacity:
                raise DoesNotFit(
                    f"{tier} would hold {format_bytes(use.used)} of {format_bytes(use.capacity)}; lower its percentages"
                    f" or the GPU batch size",
                    use.used - use.capacity,
                )
        decode = Price.total(
            (run.price(run.decode_step(context), placement), weight)
            for context, weight in decode_contexts(plan.workload)
        )
        prefill = run.price(run.prefill_step, placement) if plan.workload.prompt else Price(0.0, {})
        return Evaluation(decode.seconds, prefill.seconds, decode.shares, prefill.shares, memory, ())

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step of the whole block at the mean context."""
        run = self.run(setup, plan)
        return run.graph(run.decode_step(plan.workload.decode_context), Placement.of(run.settings))

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the prompts of the whole block."""
        run = self.run(setup, plan)
        step = run.prefill_step if plan.workload.prompt else run.decode_step(plan.workload.depth)
        return run.graph(step, Placement.of(run.settings))

    def command(self, setup: Setup, plan: Plan) -> str:
        """The plan as a command line of ``flexgen.flex_opt``.

        Raises:
            NotExpressible: not an OPT model, or settings that FlexGen refuses.
        """
        settings, workload = settings_of(plan), plan.workload
        if setup.model.architecture != "opt":
            raise NotExpressible(f"FlexGen runs OPT models only, and {setup.model.name} is none")
        if workload.depth:
            raise NotExpressible(
                f"FlexGen starts from an empty cache, but the workload has {workload.depth} tokens in it"
            )
        words = ["python", "-m", "flexgen.flex_opt", "--model", f"facebook/{setup.model.key}"]
        words += ["--percent", *map(str, settings.percent)]
        words += ["--gpu-batch-size", str(settings.gpu_batch_size)]
        words += ["--num-gpu-batches", str(settings.num_gpu_batches)]
        words += ["--prompt-len", str(workload.prompt), "--gen-len", str(workload.generate)]
        switches = {
            "--cpu-cache-compute": settings.cpu_cache_compute,
            "--compress-weight": settings.compress_weight,
            "--compress-cache": settings.compress_cache,
        }
        words += [flag for flag, on in switches.items() if on]
        words += ["--overlap", str(settings.overlap), "--sep-layer", str(settings.sep_layer)]
        words += ["--pin-weight", "1" if settings.pin_weight else "0"]
        return shlex.join(words)

    def parse(self, text: str | Sequence[str], setup: Setup, **names: Any) -> Plan:
        """The plan that a command line of ``flexgen.flex_opt`` states.

        Args:
            text: the command as text or words, with or without ``python -m flexgen.flex_opt`` in front.
            setup: machine and figures, with the model that the command names.
            names: as for `plan`.

        Raises:
            NotExpressible: an unknown flag, a wrong value, another model than the setup's, sparse attention.
        """
        words = shlex.split(text) if isinstance(text, str) else list(text)
        while words and words[0] in _PROGRAMME:
            words.pop(0)
        found = _arguments().parse_args(words)
        if model_of(found.model) != setup.model.key and found.model != setup.model.key:
            raise NotExpressible(f"FlexGen command: --model {found.model} is not {setup.model.key}")
        if found.attn_sparsity < 1.0:
            raise NotExpressible("FlexGen command: --attn-sparsity below 1 is not modelled; drop the flag")
        if found.gpu_batch_size < 1 or found.num_gpu_batches < 1 or found.prompt_len < 1 or found.gen_len < 1:
            raise NotExpressible("FlexGen command: batch sizes and lengths must be at least 1")
        if any(not 0 <= value <= 100 for value in found.percent):
            raise NotExpressible("FlexGen command: --percent takes six whole numbers from 0 to 100")
        settings = FlexgenSettings(
            percent=tuple(found.percent),
            gpu_batch_size=found.gpu_batch_size,
            num_gpu_batches=found.num_gpu_batches,
            cpu_cache_compute=found.cpu_cache_compute,
            compress_weight=found.compress_weight,
            compress_cache=found.compress_cache,
            overlap=found.overlap,
            sep_layer=found.sep_layer,
            pin_weight=found.pin_weight,
        )
        workload = checked_workload({"prompt": found.prompt_len, "generate": found.gen_len, "batch": settings.batch})
        return self.plan(setup, workload, settings, **names)


def model_of(name: str) -> str | None:
    """Key of the OPT model that ``--model`` names, None for any other text."""
    matched = _MODEL.match(name.lower())
    return matched[1] if matched else None


def decode_contexts(workload: Workload) -> list[tuple[int, float]]:
    """Contexts of a first, a middle and a last decode step, and Simpson's weights of their times."""
    first = workload.depth + workload.prompt
    last = first + max(0, workload.generate - 1)
    if last - first < 2:
        return [(workload.decode_context, 1.0)]
    return [(first, 1 / 6), ((first + last) // 2, 4 / 6), (last, 1 / 6)]
