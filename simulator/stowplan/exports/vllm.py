"""vLLM: budgets of offloaded weights, groups of prefetched layers, tiers behind the cache; as a YAML file of its flags.

What the engine realises is computed with its own rules (`stowplan.exports.fused`): a budget is filled from the first
layer on, parameter by parameter; of every group the last layers are offloaded. Running requests have their cache
on GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names
from stowplan.exports.checkpoints import check_checkpoint
from stowplan.exports.flat_yaml import write_yaml
from stowplan.exports.fused import DENSE, EXPERTS, budget_for, gpus_used, greedy, places, usable_gpus
from stowplan.exports.places import layers_of, nearest_of, room_on_gpus
from stowplan.exports.vllm_flags import GIB, UTILIZATION, VllmFlags, config, flags_of, read_values, stated_flags
from stowplan.models.model import Model
from stowplan.plan import Place, Plan, run_lengths
from stowplan.systems.base import Setup
from stowplan.systems.vllm_memory import layer_places, layer_weights
from stowplan.systems.vllm_settings import VllmSettings

CONFIG = "vllm.yaml"
_LARGEST_GROUP = 16


class VllmExporter:
    """Writer and reader of ``vllm serve --config`` files; commands are read as well."""

    key = "vllm"
    title = "vLLM"
    target = "vLLM 0.33.0"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """The offloading options that put the fewest bytes elsewhere, with no more on the GPUs than the plan has.

        Raises:
            NotExpressible: no GPU, weights of GGUF files, or more weights on GPUs than the options can spare.
        """
        model = setup.model
        if not setup.machine.gpus:
            raise NotExpressible("vLLM's offloading needs a GPU, and the machine has none")
        check_checkpoint(model, self.title)
        if plan.system == self.key:
            return self._plan(setup, Names.of(plan), stated_flags(plan.settings))
        wanted = layers_of(model, plan)
        base = VllmFlags(
            tensor_parallel=usable_gpus(model, gpus_used(wanted)),
            gpu_memory_utilization=UTILIZATION,
            max_num_seqs=plan.workload.batch,
            max_model_len=plan.workload.capacity,
            cache="fp8" if str(plan.settings.get("cache_k", "f16")) == "q8_0" else "bf16",
        )
        room = room_on_gpus(setup, plan, UTILIZATION)

        def realised(flags: VllmFlags) -> list[dict[str, Place]]:
            return places(model, flags.tensor_parallel, flags.moved(model))

        best = nearest_of(model, wanted, room, _candidates(model, base), realised)
        if best is None:
            raise NotExpressible("vLLM cannot keep so few weights on the GPU as the plan does")
        return self._plan(setup, Names.of(plan), best)

    def _plan(self, setup: Setup, names: Names, flags: VllmFlags) -> Plan:
        if flags.tensor_parallel > len(setup.machine.gpus):
            raise InputError(
                f"--tensor-parallel-size {flags.tensor_parallel}: the machine has {len(setup.machine.gpus)} GPU(s)"
            )
        moved = flags.moved(setup.model)
        offloads = flags.cpu_offload_gib > 0 or flags.offload_group_size > 0
        if offloads and not moved:
            asked = flags.offload_params if flags.offload_group_size else flags.cpu_offload_params
            raise InputError(
                f"vLLM: {', '.join(asked) or 'the groups'} match no parameter of {setup.model.name}: nothing would move"
            )
        layers: list[dict[str, Place]]
        if flags.stated().keys() <= VllmSettings.model_fields.keys():  # as the predicted system divides its last layer
            layers = [layer_places(each, flags.tensor_parallel) for each in layer_weights(setup.model, flags)]
        else:
            layers = places(setup.model, flags.tensor_parallel, moved)
        workload = names.workload
        return Plan(
            system=self.key,
            machine=names.machine,
            set=list(names.set),
            model=names.model,
            quant=names.quant,
            workload=workload,
            layers=run_lengths(layers),
            embedding="gpu0",
            output="gpu0",
            settings=flags.stated(),
        )

    def files(self, _: Setup, plan: Plan) -> Files:
        """A YAML file of flags, and the command that takes it."""
        flags = stated_flags(plan.settings)
        return Files(
            contents={CONFIG: write_yaml(config(plan.model, flags))},
            main=CONFIG,
            command=["vllm", "serve", "--config", CONFIG],
            check=["python", "-c", _CHECK, CONFIG],
            check_says="vLLM's own reading of the offloading options, without loading the model",
            notes=(
                "Replace the model by your checkpoint's folder or repository.",
                "Sizes are GiB: of weights per GPU, of the cache's host tier over all GPUs.",
                "Pinning may round sizes up to powers of two; VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY=1 avoids it.",
                "The tiers behind the cache keep blocks of finished requests; running requests need theirs on the GPU.",
            ),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The model of a command or a file."""
        found = read_values(text).get("model")
        return None if found is None else str(found)

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a ``vllm serve`` command or of a configuration file."""
        values = read_values(text)
        values.pop("model", None)
        flags = flags_of(values)
        return self._plan(setup, names, flags)


_CHECK = (
    "import sys, yaml; from vllm.config.offload import OffloadConfig, UVAOffloadConfig, PrefetchOffloadConfig; "
    "c = yaml.safe_load(open(sys.argv[1])); g = lambda n, d: c.get(n, d); "
    "print(OffloadConfig(uva=UVAOffloadConfig(cpu_offload_gb=g('cpu-offload-gb', 0), "
    "cpu_offload_params=set(g('cpu-offload-params', []))), prefetch=PrefetchOffloadConfig("
    "offload_group_size=g('offload-group-size', 0), offload_num_in_group=g('offload-num-in-group', 1), "
    "offload_prefetch_step=g('offload-prefetch-step', 1), offload_params=set(g('offload-params', [])))))"
)


def _candidates(model: Model, base: VllmFlags) -> Iterator[VllmFlags]:
    """Nothing offloaded, then whole layers from the front, then groups; of all parameters, of experts, of matrices."""
    yield base
    routed = any(layer.experts for layer in model.layers)
    dense = any(not layer.experts for layer in model.layers)
    families: list[tuple[str, ...]] = [(), *([EXPERTS] if routed else []), *([DENSE] if dense else [])]
    for segments in families:
        every = greedy(model, base.tensor_parallel, 2**62, segments)
        for count in range(1, len(model.layers) + 1):
            moved = frozenset(each for each in every if each[0] < count)
            if moved:
                size = budget_for(model, base.tensor_parallel, moved) / GIB
                yield base.model_copy(update={"cpu_offload_gib": size, "cpu_offload_params": segments})
        for size in range(2, min(_LARGEST_GROUP, len(model.layers)) + 1):
            for count in range(1, size):
                if math.gcd(size, count) == 1:
                    update = {"offload_group_size": size, "offload_num_in_group": count, "offload_params": segments}
                    yield base.model_copy(update=update)
