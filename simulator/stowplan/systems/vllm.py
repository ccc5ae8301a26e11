"""vLLM: a model split evenly over GPUs, first layers optionally in host memory, all remaining memory for the cache.

Expressible: tensor parallelism over the first GPUs of the machine, and a budget of weights per GPU that stays in host
memory, filled in the order of the modules. Where everything lives follows from these two numbers.
"""

from __future__ import annotations

from typing import Any

from stowplan.engine.graph import Graph
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.plan import Plan, Workload, expand, run_lengths
from stowplan.systems.base import Evaluation, Setup
from stowplan.systems.serial import Price, chain_graph, sampled
from stowplan.systems.vllm_execution import VllmRun
from stowplan.systems.vllm_memory import VllmMemory, layer_places, layer_weights, memory_of
from stowplan.systems.vllm_settings import VllmSettings, settings_of
from stowplan.units import format_bytes

_PREFILL_SAMPLES = 64


class Vllm:
    """vLLM as a system."""

    key = "vllm"
    title = "vLLM"
    kernels = "vllm"

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory; see `stowplan.systems.base.System`."""
        settings = self._checked(setup, plan)
        run, memory, workload = VllmRun(setup, settings), memory_of(setup, settings), plan.workload
        cached = float(workload.batch * workload.capacity)
        self._check_room(setup, settings, memory, cached)
        decode = run.step(run.decode_step(workload))
        prefill = Price.total((run.step(step), n) for step, n in sampled(run.prefill_steps(workload), _PREFILL_SAMPLES))
        warnings = []
        if workload.batch > settings.max_num_seqs:
            warnings.append(f"{workload.batch} sequences at a time need --max-num-seqs {workload.batch}")
        return Evaluation(
            decode.seconds,
            prefill.seconds,
            decode.shares,
            prefill.shares,
            memory.uses(setup, settings.tensor_parallel, cached),
            tuple(warnings),
        )

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step."""
        run = VllmRun(setup, self._checked(setup, plan))
        return chain_graph(run.chain(run.decode_step(plan.workload)), run.rates)

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the first step of the prompts; of a decode step where there is no prompt."""
        run = VllmRun(setup, self._checked(setup, plan))
        steps = run.prefill_steps(plan.workload) or [run.decode_step(plan.workload)]
        return chain_graph(run.chain(steps[0]), run.rates)

    def command(self, setup: Setup, plan: Plan) -> str:
        """The plan as ``vllm serve``."""
        settings = self._checked(setup, plan)
        longest = settings.max_model_len or min(plan.workload.capacity, setup.model.max_context)
        flags = [
            f"--tensor-parallel-size {settings.tensor_parallel}",
            f"--gpu-memory-utilization {settings.gpu_memory_utilization:g}",
            f"--max-model-len {longest}",
            f"--max-num-seqs {settings.max_num_seqs}",
            f"--max-num-batched-tokens {settings.max_num_batched_tokens}",
        ]
        if settings.cpu_offload_gib:
            flags.append(f"--cpu-offload-gb {settings.cpu_offload_gib:g}")
        if settings.cache != "bf16":
            flags.append(f"--kv-cache-dtype {settings.cache}")
        if not settings.prefix_caching:
            flags.append("--no-enable-prefix-caching")
        return " ".join([f"vllm serve {plan.model}", *flags])

    def plan(self, setup: Setup, workload: Workload, settings: VllmSettings, **names: Any) -> Plan:
        """Plan of given settings; `names` are ``machine``, ``model``, ``set`` and ``quant`` as the user wrote them.

        Raises:
            NotExpressible: see `VllmRun`.
        """
        VllmRun(setup, settings)
        gpus = settings.tensor_parallel
        given: dict[str, Any] = {
            "machine": setup.machine.spec,
            "set": setup.machine.settings,
            "model": setup.model.key,
            "quant": setup.model.quant,
        }
        return Plan(
            system=self.key,
            workload=workload,
            layers=run_lengths(layer_places(weights, gpus) for weights in layer_weights(setup.model, settings)),
            embedding="gpu0",
            output="gpu0",
            settings=settings.model_dump(mode="json"),
            **(given | names),
        )

    def _checked(self, setup: Setup, plan: Plan) -> VllmSettings:
        """The plan's settings, once its places are those that follow from them."""
        settings = settings_of(plan)
        stated = expand(plan.layers, len(setup.model.layers), where="plan")
        for weights, places in zip(layer_weights(setup.model, settings), stated, strict=True):
            if layer_places(weights, settings.tensor_parallel) != places:
                raise NotExpressible(
                    f"plan: layer {weights.layer.index}: vLLM places it by tensor_parallel "
                    f"{settings.tensor_parallel} and cpu_offload_gib {settings.cpu_offload_gib:g} alone"
                )
        return settings

    def _check_room(self, setup: Setup, settings: VllmSettings, memory: VllmMemory, cached: float) -> None:
        room = float(memory.cache_tokens(settings.block_tokens))
        if cached > room:
            missing = (cached - room) * memory.token
            raise DoesNotFit(
                f"a cache of {cached:,.0f} tokens lacks {format_bytes(missing)} on each GPU of {setup.machine.name}",
                missing,
            )
        host = setup.machine.memory.capacity.value - setup.machine.reserved.value
        if memory.host > host:
            raise DoesNotFit(
                f"offloaded weights of {format_bytes(memory.host)} exceed host memory by "
                f"{format_bytes(memory.host - host)}",
                memory.host - host,
            )
