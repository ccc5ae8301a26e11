"""FlexGen: a command with ``--percent`` in whole per cent; what its rounding makes of them is in the plan's places."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from stowplan.errors import NotExpressible
from stowplan.exports.base import Files, Names
from stowplan.exports.scripts import script_words
from stowplan.plan import Plan, Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.systems.base import Setup
from stowplan.systems.flexgen import Flexgen, model_of
from stowplan.systems.flexgen_policy import settings_of

_SYSTEM = Flexgen()


class FlexgenExporter:
    """Writer and reader of ``flexgen.flex_opt`` commands."""

    key = "flexgen"
    title = "FlexGen"
    target = "flexgen 0.1.8"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Six percentages; a plan of another system is solved again under FlexGen's constraints.

        Raises:
            NotExpressible: another model than OPT, an empty generation, a cache that is not empty at the start.
            DoesNotFit: no policy fits.
        """
        if setup.model.architecture != "opt":
            raise NotExpressible(f"FlexGen runs OPT models only, and {setup.model.name} is none")
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        if plan.system == self.key:
            settings = settings_of(plan)
        else:
            request = Request(own, (plan.model, plan.quant), plan.workload, objective="throughput")
            settings = settings_of(plan_for(self.key, request).plan)
        asked = plan.workload
        if asked.depth or not asked.prompt or not asked.generate:
            raise NotExpressible("FlexGen starts from an empty cache, with a prompt and tokens to generate")
        workload = Workload(prompt=asked.prompt, generate=asked.generate, batch=settings.batch)
        return _SYSTEM.plan(own, workload, settings, **_given(Names.of(plan)))

    def files(self, setup: Setup, plan: Plan) -> Files:
        """The command."""
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        return Files(
            contents={},
            main="run.sh",
            command=shlex.split(_SYSTEM.command(own, plan)),
            undo="Delete the folder of --offload-dir (~/flexgen_offload_dir) and of --path (~/opt_weights).",
            notes=(
                "Percentages are of each half of a layer, rounded to whole tensors; plan.json says to what.",
                "Add --path _DUMMY_ to measure without downloading weights.",
            ),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The key of the model after ``--model``."""
        words = script_words(text) if isinstance(text, str) else list(text)
        named = dict(zip(words, [*words[1:], ""], strict=True)).get("--model", "")
        return model_of(named)

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a command, or of a script with one."""
        words = script_words(text) if isinstance(text, str) else list(text)
        own = make_setup(setup.machine, setup.model, _SYSTEM)
        return _SYSTEM.parse(words, own, **_given(names))


def _given(names: Names) -> dict[str, Any]:
    return {"machine": names.machine, "set": list(names.set), "model": names.model, "quant": names.quant}
