"""Many layers of one class in the simulator, and a whole pass through the model from them.

A class is simulated for a few layers and for twice as many: the difference is what one more layer takes once the
pipeline is full. A pass is the sum over the classes and the work outside the layers; that the copies of its first
layers run while the previous pass ends is part of every prefetching system here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from stowplan.engine import blame, simulate
from stowplan.engine.graph import Graph, GraphBuilder
from stowplan.models.model import Layer
from stowplan.ops import Step
from stowplan.plan import Workload
from stowplan.routing.generate import RoutingProfile, profile_for
from stowplan.systems.base import Setup, classify
from stowplan.systems.mechanisms.experts import plan_experts, resident_hits
from stowplan.systems.mechanisms.policy import Policy
from stowplan.systems.mechanisms.pricing import Pricing
from stowplan.systems.mechanisms.tasks import History, LayerTasks
from stowplan.work import OVERHEAD, Work

_SAMPLES = 9
_LEAST_LAYERS = 4  # the same for nearly all policies, so that a mechanism that does nothing changes no digit


@dataclass(frozen=True, slots=True)
class Passed:
    """Seconds of a pass and how they divide among what held it up."""

    seconds: float
    shares: Mapping[str, float]

    def __add__(self, other: Passed) -> Passed:
        names = {*self.shares, *other.shares}
        shares = {name: self.shares.get(name, 0.0) + other.shares.get(name, 0.0) for name in names}
        return Passed(self.seconds + other.seconds, shares)

    def __mul__(self, times: float) -> Passed:
        return Passed(self.seconds * times, {name: amount * times for name, amount in self.shares.items()})


NOTHING = Passed(0.0, {})


@dataclass(frozen=True, slots=True)
class Alike:
    """Layers that do the same: `count` like `layer`, with a share `hits` of the experts they need on the GPU."""

    layer: Layer
    hits: float
    policy: Policy
    count: int = 1


class Loop:
    """A policy on one setup and workload.

    Args:
        setup: model, machine, figures.
        engine: name of the engine whose kernels are used.
        policy: what is done.
        workload: what is asked; its batch is divided among the policy's GPU batches.
        profile: how tokens are routed; the model's own where None.

    Raises:
        NotExpressible: the machine lacks a GPU, memory of its own on it, or a disk that the policy needs.
    """

    def __init__(
        self, setup: Setup, engine: str, policy: Policy, workload: Workload, profile: RoutingProfile | None = None
    ) -> None:
        self.setup, self.policy, self.workload = setup, policy, workload
        self.pricing = Pricing(setup, engine, policy)
        self.profile = profile or profile_for(setup.model.key)
        self.gpu_batch = -(-workload.batch // policy.batches)
        self._passes: dict[Step, Passed] = {}
        self._layers: dict[tuple[Alike, Step], Passed] = {}

    # Passes --------------------------------------------------------------------------------------------------------

    def decode_step(self, context: int) -> Step:
        """One decode step of one GPU batch."""
        return Step.decode(self.gpu_batch, context)

    def decode(self, context: int) -> Passed:
        """One decode step of the whole batch."""
        return self._pass(self.decode_step(context))

    def prefill_steps(self) -> list[tuple[Step, float]]:
        """Passes of one GPU batch's prompts, with multiplicities; long ones are sampled over the past."""
        prompt, depth = self.workload.prompt, self.workload.depth
        if not prompt:
            return []
        chunk = min(prompt, self.policy.chunk or prompt)
        count, rest = divmod(prompt, chunk)
        full = [depth + number * chunk for number in range(count)]
        steps = [(Step(chunk, ((past, self.gpu_batch),), 0), times) for past, times in _sampled(full)]
        if rest:
            steps.append((Step(rest, ((depth + count * chunk, self.gpu_batch),), 0), 1.0))
        return steps

    def prefill(self) -> Passed:
        """All prompts of the whole batch, first token included."""
        total = NOTHING
        for step, times in self.prefill_steps():
            total = total + self._pass(step) * times
        return total

    def _pass(self, step: Step) -> Passed:
        if step not in self._passes:
            total = NOTHING
            for alike in self.runs(step):
                total = total + self._steady(alike, step) * alike.count
            self._passes[step] = total + self._edges(step) * self.policy.batches
        return self._passes[step]

    def runs(self, step: Step) -> list[Alike]:
        """Layers of a pass that do the same, class after class.

        The first layers of a class may hold all of their experts, or read all of the cache.
        """
        found: list[Alike] = []
        whole = self.policy.cache.whole_layers if self.policy.cache.read < 1.0 and step.new == 1 else 0
        unselective = replace(self.policy, cache=replace(self.policy.cache, read=1.0))
        for members in classify(self.setup.model):
            layer = members.layer
            hits, shallow = resident_hits(self.policy, self.setup.model, layer, step, self.profile)
            for number, index in enumerate(members.indices):
                policy = unselective if index < whole else self.policy
                alike = Alike(layer, 1.0 if number < shallow else hits, policy)
                if found and replace(found[-1], count=1) == alike:
                    found[-1] = replace(found[-1], count=found[-1].count + 1)
                else:
                    found.append(alike)
        return found

    def _edges(self, step: Step) -> Passed:
        work = self._outside(step)
        fluid, slowest = work.roofline(self.pricing.rates)
        shares = {OVERHEAD: work.overhead_s} | ({slowest: fluid} if slowest else {})
        return Passed(fluid + work.overhead_s, shares)

    def _outside(self, step: Step) -> Work:
        """Embedding and logits of one GPU batch; a pass through a prompt makes one row of logits per sequence."""
        return self.pricing.edges(Step(step.new, step.groups, self.gpu_batch))

    def _steady(self, alike: Alike, step: Step) -> Passed:
        """One more layer of its kind."""
        key = (replace(alike, count=1), step)
        if key not in self._layers:
            few = self.fill
            short, long = (simulate(self.graph(replace(alike, count=layers), step)) for layers in (few, 2 * few))
            seconds = (long.makespan - short.makespan) / few
            scale = seconds / long.makespan if long.makespan else 0.0
            self._layers[key] = Passed(seconds, {name: lasted * scale for name, lasted in blame(long).items()})
        return self._layers[key]

    @property
    def fill(self) -> int:
        """Layers after which every buffer has been used once and the loop repeats itself."""
        own = self.policy
        deepest = max(own.weights.prefetch, own.cache.prefetch, own.experts.lookahead if own.experts.accuracy else 0)
        return max(_LEAST_LAYERS, 2 + deepest)

    def graph(self, alike: Alike, step: Step) -> Graph:
        """Some layers of one kind, one behind the other."""
        graph = GraphBuilder(self.pricing.rates)
        self._write(graph, alike, step, History(outputs=[()] * self.policy.batches))
        return graph.build()

    def whole_graph(self, step: Step) -> Graph:
        """Every layer of a pass, class after class, for pictures."""
        graph = GraphBuilder(self.pricing.rates)
        history = History(outputs=[()] * self.policy.batches)
        for alike in self.runs(step):
            self._write(graph, alike, step, history)
        waits = tuple(task for last in history.outputs for task in last)
        stream = "gpu0" if self.policy.device == "gpu" else "host"
        work = self._outside(step) * self.policy.batches
        graph.add("embedding, output", work, stream=stream, after=waits, kind="compute")
        return graph.build()

    def _write(self, graph: GraphBuilder, alike: Alike, step: Step, history: History) -> None:
        experts = plan_experts(self.pricing, alike.policy, alike.layer, step, alike.hits)
        writer = LayerTasks(self.pricing, alike.policy, alike.layer, step, experts)
        for _ in range(alike.count):
            writer.append(graph, history)


def _sampled(pasts: list[int]) -> list[tuple[int, float]]:
    """Pasts that stand for all of an even row of them, with weights: exact where time is linear between neighbours."""
    last = len(pasts) - 1
    if last < _SAMPLES:
        return [(past, 1.0) for past in pasts]
    kept = sorted({round(number * last / (_SAMPLES - 1)) for number in range(_SAMPLES)})
    weights = dict.fromkeys(kept, 1.0)
    for low, high in pairwise(kept):
        between = high - low - 1  # each is interpolated, on average half by either end
        weights[low] += between / 2
        weights[high] += between / 2
    return [(pasts[number], weights[number]) for number in kept]
