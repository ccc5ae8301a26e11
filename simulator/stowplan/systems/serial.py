"""Layer-synchronous systems: tasks run one after another, so a step is a chain and its time is a sum over layers.

The same chain is priced (sums of single-task rooflines, which the planner's programme is made of) and simulated (a task
graph); the two agree because they are one list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stowplan.engine.graph import Graph, GraphBuilder
from stowplan.models.model import Layer
from stowplan.ops import EXPERT_PARTS, FFN_PARTS, Part, Step, part_of
from stowplan.plan import MemoryUse, Place, Workload
from stowplan.systems.base import RAM, Evaluation, LayerClass, Setup, classify
from stowplan.work import OVERHEAD, Work

_PREFILL_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class ChainTask:
    """One task of a chain: name, cost, the queue it is drawn in, and its kind (compute, copy, disk)."""

    name: str
    work: Work
    stream: str
    kind: str


@dataclass(frozen=True, slots=True)
class LayerPlaces:
    """Where the parts of one layer live.

    Attributes:
        mixer: place of the projections, norms and router; the layer's home.
        kv: place of the cache or state.
        ffn: (part, place) pairs of the dense, routed and shared feed-forward tensors, sorted by part.
    """

    mixer: str
    kv: str
    ffn: tuple[tuple[Part, str], ...]

    def place(self, part: Part) -> str:
        """Place of a part; a part that the layer does not have lives at its home."""
        if part is Part.KV:
            return self.kv
        return dict(self.ffn).get(part, self.mixer)

    def as_mapping(self) -> dict[str, Place]:
        """Part name to place, as a plan stores it."""
        return {Part.MIXER.value: self.mixer, Part.KV.value: self.kv, **{p.value: place for p, place in self.ffn}}

    @staticmethod
    def from_mapping(places: Mapping[str, Place]) -> LayerPlaces:
        """Inverse of `as_mapping`; the caller has checked that every place is a single one."""
        known = (*FFN_PARTS, *EXPERT_PARTS, Part.SHARED)
        ffn = tuple(sorted((part, str(places[part.value])) for part in known if part.value in places))
        return LayerPlaces(str(places[Part.MIXER.value]), str(places[Part.KV.value]), ffn)


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of a chain and how they divide among limiting resources."""

    seconds: float
    shares: Mapping[str, float]

    @staticmethod
    def of(chain: Iterable[ChainTask], rates: Mapping[str, float]) -> Price:
        """Sum of the tasks' single-task rooflines."""
        seconds, shares = 0.0, dict[str, float]()
        for task in chain:
            fluid, slowest = task.work.roofline(rates)
            overhead = task.work.overhead_s
            seconds += fluid + overhead
            if slowest is not None:
                shares[slowest] = shares.get(slowest, 0.0) + fluid
            if overhead:
                shares[OVERHEAD] = shares.get(OVERHEAD, 0.0) + overhead
        return Price(seconds, shares)

    @staticmethod
    def total(weighted: Iterable[tuple[Price, float]]) -> Price:
        """Sum of prices with multiplicities."""
        seconds, shares = 0.0, dict[str, float]()
        for price, times in weighted:
            seconds += price.seconds * times
            for name, amount in price.shares.items():
                shares[name] = shares.get(name, 0.0) + amount * times
        return Price(seconds, shares)


def chain_graph(chain: Iterable[ChainTask], rates: Mapping[str, float]) -> Graph:
    """Task graph in which every task waits for the one before it."""
    builder = GraphBuilder(rates)
    last: tuple[int, ...] = ()
    for task in chain:
        last = (builder.add(task.name, task.work, stream=task.stream, after=last, kind=task.kind),)
    return builder.build()


def prompt_chunks(workload: Workload, chunk: int) -> list[Step]:
    """Steps in which the prompts of a batch are processed, at most `chunk` tokens in each.

    Short prompts share a step; a long prompt takes several, sequence after sequence.
    """
    prompt, steps = workload.prompt, list[Step]()
    if prompt == 0:
        return steps
    if prompt <= chunk:
        together = max(1, chunk // prompt)
        full, rest = divmod(workload.batch, together)
        counts = [together] * full + ([rest] if rest else [])
        return [Step.prefill(prompt, workload.depth, count) for count in counts]
    for start in range(0, prompt, chunk):
        tokens = min(chunk, prompt - start)
        last = start + tokens == prompt
        steps.append(Step(tokens, ((workload.depth + start, 1),), 1 if last else 0))
    return steps * workload.batch


def sampled(steps: Sequence[Step], most: int, *, earliest: bool = False) -> list[tuple[Step, float]]:
    """At most about `most` steps that stand for all, with multiplicities: neighbours are merged.

    They are merged at their mean past: the time of a step is convex in its past (a maximum of linear terms), so the sum
    over the samples is a lower bound, exact but for the group that holds a kink. A sliding window makes it concave;
    with `earliest` they are merged at their least past, a lower bound for any time that grows with the past.
    """
    counted = Counter(steps)
    if len(counted) <= most:
        return [(step, float(n)) for step, n in counted.items()]
    full = [step for step in counted if step.new == steps[0].new and step.logits == 0]
    alike = set(full)
    samples = [(step, float(n)) for step, n in counted.items() if step not in alike]
    edges = [round(i * len(full) / (most - 1)) for i in range(most)]
    for low, high in pairwise(edges):
        group = full[low:high]
        if group:
            pasts = [step.groups[0][0] for step in group]
            past = min(pasts) if earliest else sum(pasts) // len(pasts)
            samples.append((Step(group[0].new, ((past, 1),), 0), float(sum(counted[step] for step in group))))
    return samples


class SerialRun(ABC):
    """A layer-synchronous engine on one setup: what a layer may look like, and the chain that each look costs.

    The planner and the evaluation use the same object, so a placement is priced as it is run.

    Attributes:
        setup, workload: model, machine and figures; what is asked.
        classes: classes of identical layers.
        rates: amount per second of every resource.
    """

    rates: Mapping[str, float]

    def __init__(self, setup: Setup, workload: Workload) -> None:
        self.setup, self.workload = setup, workload
        self.classes = classify(setup.model)
        self._prices: dict[tuple[int, LayerPlaces, Step], Price] = {}
        self._part_bytes: dict[int, Mapping[Part, float]] = {}
        self._class_of = {index: k for k, members in enumerate(self.classes) for index in members.indices}

    @abstractmethod
    def patterns(self, members: LayerClass) -> list[LayerPlaces]:
        """Every way that the engine can place one layer of a class."""

    @abstractmethod
    def layer_chain(self, layer: Layer, places: LayerPlaces, step: Step) -> list[ChainTask]:
        """Tasks of one layer, from activations where it works to activations there, see `works_at`."""

    @abstractmethod
    def boundary(self, source: str, target: str, step: Step) -> list[ChainTask]:
        """Copies of the activations between layers that work at different places."""

    @abstractmethod
    def head(self, step: Step) -> list[ChainTask]:
        """Tasks before the first layer: the embedding, left in host memory."""

    @abstractmethod
    def tail(self, output: str, step: Step) -> list[ChainTask]:
        """Tasks after the last layer: logits where the output matrix lives, then sampling."""

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Tokens of a prompt that one pass processes."""

    @abstractmethod
    def memory(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> dict[str, MemoryUse]:
        """Use of every tier."""

    @abstractmethod
    def overflow(self, memory: Mapping[str, MemoryUse], layers: Sequence[LayerPlaces]) -> None:
        """Account for what does not fit in host memory (pages read from disk); forgets cached prices if it matters."""

    @abstractmethod
    def kv_bytes(self, layer: Layer) -> float:
        """Bytes of one layer's cache or state for the whole batch."""

    @property
    def homes(self) -> list[str]:
        """Places that a layer's mixer may live in, in the order that the layers of a model take them."""
        return [RAM, *(f"gpu{i}" for i in self.setup.gpus)]

    @property
    def outputs(self) -> list[str]:
        """Places that the output matrix may take: with the last layer, on whichever GPU that is, or host memory."""
        return [*(f"gpu{i}" for i in self.setup.gpus), RAM]

    @property
    def output_follows(self) -> bool:
        """Whether an output matrix on a GPU must be where the last layer is."""
        return True

    def attention_changes_at(self, layers: Sequence[LayerPlaces]) -> int:  # noqa: ARG002
        """Tokens of a step from which on attention runs elsewhere or by another kernel; 0 where it never does."""
        return 0

    def works_at(self, home: str, step: Step) -> str:  # noqa: ARG002
        """Where a layer with its mixer at `home` takes and leaves its activations in a step."""
        return home

    @property
    def embedding_place(self) -> str:
        """Where the token embedding lives."""
        return RAM

    @property
    def margin(self) -> float:
        """Bytes of every GPU's memory that a plan leaves free."""
        return 0.0

    def class_of(self, index: int) -> int:
        """Position in `classes` of a layer's class."""
        return self._class_of[index]

    def distinct(self, layers: Sequence[LayerPlaces]) -> Counter[tuple[int, LayerPlaces]]:
        """How many layers of each class are placed each way, in order of the first of them."""
        return Counter((self._class_of[index], places) for index, places in enumerate(layers))

    @property
    def unified(self) -> bool:
        """Whether the GPU's memory is the host's."""
        gpus = self.setup.machine.gpus
        return bool(gpus) and gpus[0].unified

    def spill_seconds_per_byte(self, decode: float, prefill: float) -> float | None:  # noqa: ARG002
        """Seconds that a byte beyond host memory costs at least, for weighted steps; None where nothing may spill."""
        return None

    def layer_bytes(self, layer: Layer, places: LayerPlaces) -> dict[str, float]:
        """Weights and cache of a layer by place."""
        used = {places.kv: self.kv_bytes(layer)}
        for part, size in self.part_bytes(layer).items():
            place = places.place(part)
            used[place] = used.get(place, 0.0) + size
        return used

    def part_bytes(self, layer: Layer) -> Mapping[Part, float]:
        """Weights of a layer by part."""
        index = self._class_of[layer.index]
        if index not in self._part_bytes:
            sizes: dict[Part, float] = {}
            for tensor in layer.tensors:
                sizes[part_of(tensor)] = sizes.get(part_of(tensor), 0.0) + tensor.bytes
            self._part_bytes[index] = sizes
        return self._part_bytes[index]

    def warnings(self, layers: Sequence[LayerPlaces]) -> tuple[str, ...]:  # noqa: ARG002
        """What the user should know about a placement."""
        return ()

    def price(self, index: int, places: LayerPlaces, step: Step) -> Price:
        """Price of layer `index` in a step."""
        key = (self._class_of[index], places, step)
        if key not in self._prices:
            chain = self.layer_chain(self.classes[key[0]].layer, places, step)
            self._prices[key] = Price.of(chain, self.rates)
        return self._prices[key]

    def edges(self, layers: Sequence[LayerPlaces], output: str, step: Step) -> list[ChainTask]:
        """Everything of a step outside the layers: embedding, copies between homes, logits."""
        homes = [RAM, *(self.works_at(places.mixer, step) for places in layers), output]
        chain = self.head(step)
        for source, target in pairwise(homes):
            chain += self.boundary(source, target, step)
        return chain + self.tail(output, step)

    def step_price(self, layers: Sequence[LayerPlaces], output: str, step: Step) -> Price:
        """Price of a whole step."""
        weighted = [
            (self.price(self.classes[k].indices[0], places, step), float(n))
            for (k, places), n in self.distinct(layers).items()
        ]
        return Price.total([*weighted, (Price.of(self.edges(layers, output, step), self.rates), 1.0)])

    def step_graph(self, layers: Sequence[LayerPlaces], output: str, step: Step) -> Graph:
        """Task graph of a whole step."""
        homes = [self.works_at(places.mixer, step) for places in layers]
        chain = self.head(step)
        previous = RAM
        for layer, places, home in zip(self.setup.model.layers, layers, homes, strict=True):
            chain += self.boundary(previous, home, step)
            chain += self.layer_chain(layer, places, step)
            previous = home
        chain += self.boundary(previous, output, step)
        return chain_graph(chain + self.tail(output, step), self.rates)

    @property
    def decode_step(self) -> Step:
        """One decode step at the workload's mean context."""
        return Step.decode(self.workload.batch, self.workload.decode_context)

    @property
    def prefill_steps(self) -> list[Step]:
        """Steps of the prompts of the whole batch."""
        return prompt_chunks(self.workload, self.chunk)

    def evaluate(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> Evaluation:
        """Times and memory of a placement.

        Raises:
            DoesNotFit: a tier would hold more than its capacity.
        """
        memory = self.memory(layers, embedding, output)
        self.overflow(memory, layers)
        decode = self.step_price(layers, output, self.decode_step)
        prefill = Price.total(
            (self.step_price(layers, output, step), n) for step, n in sampled(self.prefill_steps, _PREFILL_SAMPLES)
        )
        return Evaluation(decode.seconds, prefill.seconds, decode.shares, prefill.shares, memory, self.warnings(layers))
