"""SGLang: a budget of offloaded weights, groups of layers, resident experts, a hierarchical cache; as a YAML file.

What the engine realises is computed with its own rules (`stowplan.exports.fused`). Its groups move experts of
DeepSeek's architectures only; the budget is a whole number of GiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names
from stowplan.exports.checkpoints import check_checkpoint
from stowplan.exports.flat_yaml import write_yaml
from stowplan.exports.fused import EXPERTS, Moved, gpus_used, greedy, grouped, places, usable_gpus
from stowplan.exports.places import layers_of, nearest_of, room_on_gpus
from stowplan.exports.sglang_flags import SglangFlags, config, flags_of, read_values, stated_flags
from stowplan.models.model import Model
from stowplan.plan import Place, Plan, run_lengths
from stowplan.systems.base import Setup

CONFIG = "sglang.yaml"
GIB = 2**30
_LARGEST_GROUP = 16
_SHARE = 0.9  # of the GPU's memory; the engine leaves about a tenth for activations by default
_GROUPED = ("deepseek2", "deepseek3")


class SglangExporter:
    """Writer and reader of ``python -m sglang.launch_server --config`` files; commands are read as well."""

    key = "sglang"
    title = "SGLang"
    target = "SGLang 0.5.23"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """The options that put the fewest bytes elsewhere, with no more on the GPUs than the plan has.

        Raises:
            NotExpressible: no GPU, weights of GGUF files, or more weights on GPUs than the options can spare.
        """
        model = setup.model
        if not setup.machine.gpus:
            raise NotExpressible("SGLang's offloading needs a GPU, and the machine has none")
        check_checkpoint(model, self.title)
        if plan.system == self.key:
            return self._plan(setup, Names.of(plan), stated_flags(plan.settings))
        wanted = layers_of(model, plan)
        base = SglangFlags(
            tp_size=usable_gpus(model, gpus_used(wanted)),
            context_length=plan.workload.capacity,
            max_running_requests=plan.workload.batch,
        )
        room = room_on_gpus(setup, plan, _SHARE)
        best = nearest_of(model, wanted, room, _candidates(model, base), partial(realised, model))
        if best is None:
            raise NotExpressible("SGLang cannot keep so few weights on the GPU as the plan does")
        return self._plan(setup, Names.of(plan), best)

    def _plan(self, setup: Setup, names: Names, flags: SglangFlags) -> Plan:
        check_flags(setup, flags)
        return Plan(
            system=self.key,
            machine=names.machine,
            set=list(names.set),
            model=names.model,
            quant=names.quant,
            workload=names.workload,
            layers=run_lengths(realised(setup.model, flags)),
            embedding="gpu0",
            output="gpu0",
            settings=flags.stated(),
        )

    def files(self, _: Setup, plan: Plan) -> Files:
        """A YAML file of flags, and the command that takes it."""
        return Files(
            contents={CONFIG: write_yaml(config(plan.model, stated_flags(plan.settings)))},
            main=CONFIG,
            command=["python", "-m", "sglang.launch_server", "--config", CONFIG],
            notes=(
                "Replace model-path by your checkpoint's folder or repository.",
                "cpu-offload-gb counts GiB of weights per GPU; hicache-size counts decimal GB of cache per GPU.",
                "At start the engine logs the layers that it offloads and the GPU memory that is left.",
            ),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The model of a command or a file."""
        found = read_values(text).get("model")
        return None if found is None else str(found)

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a command or of a configuration file.

        Raises:
            NotExpressible: flags of KTransformers, which has a reader of its own.
        """
        flags = flags_of(read_values(text))
        if flags.kt_weight_path or flags.kt_method:
            raise NotExpressible(
                "SGLang: --kt-weight-path and --kt-method are KTransformers': add --engine ktransformers"
            )
        return self._plan(setup, names, flags)


def moved(model: Model, flags: SglangFlags) -> Moved:
    """Parameters in host memory by the engine's rule."""
    if flags.offload_group_size > 0:
        size, count = flags.offload_group_size, flags.offload_num_in_group
        return grouped(model, flags.tp_size, size, count, EXPERTS) if model.architecture in _GROUPED else frozenset()
    return greedy(model, flags.tp_size, flags.cpu_offload_gb * GIB)


def realised(model: Model, flags: SglangFlags) -> list[dict[str, Place]]:
    """Places of every layer."""
    experts = max((layer.experts.total for layer in model.layers if layer.experts), default=0)
    resident = flags.paged_experts_num_resident
    share = 1.0 if resident is None or not experts else min(1.0, resident / experts)
    return places(model, flags.tp_size, moved(model, flags), share)


def check_flags(setup: Setup, flags: SglangFlags) -> None:
    """Refuse what the model or the machine cannot follow.

    Raises:
        InputError: more GPUs than there are, fewer resident experts than a token uses.
        NotExpressible: groups or experts that the model does not have.
    """
    model = setup.model
    if flags.tp_size > len(setup.machine.gpus):
        raise InputError(f"--tp-size {flags.tp_size}: the machine has {len(setup.machine.gpus)} GPU(s)")
    if flags.offload_group_size > 0 and not moved(model, flags):
        raise NotExpressible(
            f"SGLang: --offload-group-size moves experts of DeepSeek's architectures only, nothing of {model.name}"
        )
    active = max((layer.experts.active for layer in model.layers if layer.experts), default=None)
    resident = flags.paged_experts_num_resident
    if resident is not None and active is None:
        raise NotExpressible(f"SGLang: --enable-paged-experts: {model.name} has no routed experts")
    if resident is not None and active is not None and resident < active:
        raise InputError(f"--paged-experts-num-resident {resident}: a token uses {active} experts; it is at least that")


def _candidates(model: Model, base: SglangFlags) -> Iterator[SglangFlags]:
    yield base
    total = sum(tensor.bytes for layer in model.layers for tensor in layer.tensors)
    for size in range(1, math.ceil(total / base.tp_size / GIB) + 1):
        yield base.model_copy(update={"cpu_offload_gb": size})
    if model.architecture in _GROUPED:
        for size in range(2, min(_LARGEST_GROUP, len(model.layers)) + 1):
            for count in range(1, size):
                if math.gcd(size, count) == 1:
                    yield base.model_copy(update={"offload_group_size": size, "offload_num_in_group": count})
    experts = next((layer.experts for layer in model.layers if layer.experts), None)
    if experts is not None and base.tp_size == 1:
        for resident in range(experts.active, experts.total):
            update = {"enable_paged_experts": True, "paged_experts_num_resident": resident}
            yield base.model_copy(update=update)
