"""One layer under a policy as tasks: loads of weights and cache, attention and products where they run, stores.

Copies wait only for what they need: the buffer that they fill (so many pieces ahead as the policy prefetches), or the
router that asks for an expert. Each kind of copy is a queue of its own; queues share the links.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from stowplan.engine.graph import GraphBuilder
from stowplan.models.model import Layer
from stowplan.ops import CacheFormat, Kind, Operator, Step
from stowplan.systems.mechanisms.experts import ExpertPlan
from stowplan.systems.mechanisms.policy import Policy
from stowplan.systems.mechanisms.pricing import (
    D2H,
    DRAM,
    GPU,
    H2D,
    HALF,
    READ,
    STORAGE,
    WRITE,
    Pricing,
    as_stored,
    dense_bytes,
    expert_bytes,
    layer_parts,
)
from stowplan.work import Work

_BEFORE_ATTENTION = 1 / 3
"""Share of a layer's dense weights that the projections before the attention use, for copies in pieces."""


@dataclass
class History:
    """Tasks of earlier layers that later ones wait for; lists grow by one entry per piece, slice or layer.

    Attributes:
        outputs: per GPU batch, the tasks that end the newest layer.
        freed: per piece of weights, the task after which its buffer is free.
        freed_slices: likewise of slices of the cache, over all GPU batches.
        routers: per layer, the task that chooses experts.
        owed: deferred work of the CPU that the next layer's experts wait for.
    """

    outputs: list[tuple[int, ...]]
    freed: list[int] = field(default_factory=list)
    freed_slices: list[int] = field(default_factory=list)
    routers: list[int] = field(default_factory=list)
    owed: tuple[int, ...] = ()


class LayerTasks:
    """Writes layers of one class in one kind of pass into a graph.

    Args:
        pricing: costs.
        policy: what is done.
        layer: one layer of the class.
        step: one GPU batch's pass.
        experts: what the expert cache does with the layer's routed experts.
    """

    def __init__(self, pricing: Pricing, policy: Policy, layer: Layer, step: Step, experts: ExpertPlan) -> None:
        self.pricing, self.policy, self.layer, self.step, self.experts = pricing, policy, layer, step, experts
        weights, own = policy.weights, policy.experts
        self.parts = as_stored(
            layer_parts(layer, step),
            weights.stored if weights.unpack is None else 1.0,
            own.stored if own.unpack is None else 1.0,
        )
        size = dense_bytes(layer) * weights.stored
        # The CPU takes its share in decode; a prompt has work enough for the GPU to hide the copies.
        shared = weights.cpu if policy.device == "gpu" and step.new == 1 else 0.0
        self.cpu_share = weights.away * shared
        self.from_ram, self.from_disk = size * weights.ram * (1.0 - shared), size * weights.disk * (1.0 - shared)
        self.cpu_from_disk = size * weights.disk * shared
        if layer.experts is not None and not policy.experts.selective:
            rest = expert_bytes(layer) * policy.experts.stored
            self.from_ram += rest * policy.experts.ram
            self.from_disk += rest * policy.experts.disk
        if policy.device == "cpu":
            self.from_ram = 0.0  # it is computed where it lies
        self._host = GPU if policy.one_thread else "host"
        self._unpacked = dense_bytes(layer) * (1.0 - self.cpu_share)

    # Every layer ---------------------------------------------------------------------------------------------------

    def append(self, graph: GraphBuilder, history: History) -> None:
        """Write one more layer: every GPU batch up to its attention, then every one's rest.

        In that order the CPU attends for one batch while the GPU computes another.
        """
        pieces = self._load_weights(graph, history)
        started = [self._begin(graph, history, batch, pieces) for batch in range(self.policy.batches)]
        after = 0
        for batch, (_, attended) in enumerate(started):
            after = self._finish(graph, history, batch, attended, pieces)
        if pieces:
            first = _first_third(pieces)
            history.freed += [started[-1][0]] * first + [after] * (len(pieces) - first)

    def _load_weights(self, graph: GraphBuilder, history: History) -> list[int]:
        """Loads of the layer's pieces; empty where nothing is copied."""
        weights = self.policy.weights
        if weights.zero_copy or not self.from_ram + self.from_disk:
            return []
        buffers = (weights.prefetch + 1) * weights.pieces
        written = len(history.freed)
        ids: list[int] = []
        for piece in range(weights.pieces):
            position = written + piece - buffers
            wait = (history.freed[position],) if position >= 0 else ()
            share = 1.0 / weights.pieces
            ids.append(self._bring(graph, "weights", self.from_ram * share, self.from_disk * share, wait))
        return ids

    def _bring(self, graph: GraphBuilder, name: str, ram: float, disk: float, wait: tuple[int, ...]) -> int:
        """Bytes from host memory and from disk to where they are computed; the task that ends it."""
        pricing, weights = self.pricing, self.policy.weights
        last = wait
        if disk:
            read = pricing.read(disk, mapped=weights.mapped)
            if weights.direct and self.policy.device == "gpu":
                read = Work({READ: disk, H2D: disk})
            last = (graph.add(f"{name} read", read, stream=f"disk {name}", after=wait, kind="disk"),)
        copied = 0.0 if self.policy.device == "cpu" else ram + (0.0 if weights.direct else disk)
        if copied:
            last = (
                graph.add(
                    name, pricing.copy(copied, pinned=weights.pinned), stream=f"h2d {name}", after=last, kind="copy"
                ),
            )
        return last[0] if last else graph.add(name, after=wait)

    # One GPU batch -------------------------------------------------------------------------------------------------

    def _begin(
        self, graph: GraphBuilder, history: History, batch: int, pieces: list[int]
    ) -> tuple[int, tuple[int, ...]]:
        """One GPU batch up to its attention: the task after which the first weights are free, and the attention."""
        arrived = pieces[: _first_third(pieces) or None]
        wait = (*history.outputs[batch], *arrived)
        before = self._products(
            graph, "projections", self.parts.before, wait, unpacked=batch == 0, share=_BEFORE_ATTENTION
        )
        attended = self._attention(graph, history, before)
        self._store(graph, before)
        return before[-1], attended

    def _finish(
        self, graph: GraphBuilder, history: History, batch: int, attended: tuple[int, ...], pieces: list[int]
    ) -> int:
        """The rest of one GPU batch; returns the task after which its weights are free."""
        after = self._products(
            graph,
            "layer",
            self.parts.after,
            (*attended, *pieces),
            unpacked=batch == 0,
            share=1.0 - _BEFORE_ATTENTION,
            own=self.policy.overheads.layer,
        )
        routed = self._experts(graph, history, after) if self.parts.experts else ()
        history.outputs[batch] = (*after, *routed)
        return after[-1]

    def _products(
        self,
        graph: GraphBuilder,
        name: str,
        operators: tuple[Operator, ...],
        wait: Iterable[int],
        *,
        unpacked: bool,
        share: float,
        own: float = 0.0,
    ) -> tuple[int, ...]:
        """Matrix products, divided between GPU and CPU as the policy says; the GPU's task comes last."""
        pricing, weights = self.pricing, self.policy.weights
        waits = tuple(wait)
        if self.policy.device == "cpu":
            work = pricing.on_cpu(operators) + Work({}, own)
            return (graph.add(name, work, stream=self._host, after=waits, kind="compute"),)
        ids: list[int] = []
        if self.cpu_share and operators:
            ready = waits
            if self.cpu_from_disk:
                read = pricing.read(self.cpu_from_disk * share, mapped=weights.mapped)
                ready = (graph.add(f"{name} read", read, stream="disk host", after=waits, kind="disk"), *waits)
            work = pricing.on_cpu(operators, self.cpu_share) + self._hop(operators)
            ids.append(graph.add(f"{name} on CPU", work, stream=self._host, after=ready, kind="compute"))
        work = pricing.on_gpu(operators, 1.0 - self.cpu_share) + Work({}, own)
        if unpacked and weights.unpack is not None:
            work = work + pricing.unpack(self._unpacked * share, weights.unpack)
        if weights.zero_copy:
            moved = (self.from_ram + self.from_disk) * share
            work = work + pricing.copy(moved, pinned=weights.pinned)
        ids.append(graph.add(name, work, stream=GPU, after=waits, kind="compute"))
        return tuple(ids)

    def _hop(self, operators: tuple[Operator, ...]) -> Work:
        """Activations to the CPU and results back, with their synchronisation."""
        moved = sum(op.activation_bytes for op in operators) / max(1, len(operators))
        return Work({H2D: moved / 2, D2H: moved / 2}, 2.0 * self.policy.overheads.hop)

    def _shrunk(self, op: Operator, share: float) -> Operator:
        """Attention over a share of the kept tokens: it multiplies less, and reads less of a smaller stored form."""
        cache = self.policy.cache
        read = cache.kept if cache.unpack is not None else self._cache_share()
        size = op.kv_read * read * share
        return replace(
            op, flops=op.flops * cache.kept * share, kv_read=size * (1.0 - cache.recompute) + self._inputs(size)
        )

    # Attention -----------------------------------------------------------------------------------------------------

    def _cache_share(self) -> float:
        """Stored bytes of the cache per byte of a whole fp16 one: eviction, format and its fp16 residue."""
        cache = self.policy.cache
        past = self.step.groups[0][0] + self.step.new
        kept = max(1.0, past * cache.kept)
        fresh = min(1.0, cache.residual / kept)
        return cache.kept * (fresh + (1.0 - fresh) * cache.bits)

    def _past(self) -> float:
        """fp16 bytes that the pass finds in the cache: of a sliding window what is in sight, where no more is kept."""
        op = self.parts.attention
        if self.policy.cache.windowed or op.kind is Kind.RECURRENCE:
            return max(0.0, op.kv_read - op.kv_write)
        return sum(past * count for past, count in self.step.groups) * CacheFormat().token_bytes(self.layer)

    def _attention(self, graph: GraphBuilder, history: History, before: tuple[int, ...]) -> tuple[int, ...]:
        """Attention of one GPU batch, its cache brought or attended to where it lies."""
        op, cache, pricing = self.parts.attention, self.policy.cache, self.pricing
        stored = self._cache_share()
        if self.policy.device == "cpu":
            return (graph.add("attention", pricing.on_cpu((self._shrunk(op, 1.0),)), stream=self._host, after=before),)
        decode = self.step.new == 1
        selects = cache.read < 1.0 and decode
        used = cache.read if selects else 1.0
        past = self._past() * stored
        elsewhere = cache.away if decode and cache.attend != "gpu" else 0.0
        last: list[int] = []
        if elsewhere:
            last.append(self._attend_elsewhere(graph, op, past * elsewhere * used, elsewhere * used, before))
        ready = before
        if selects and cache.scan:
            # The products that select read a part of the keys and are as slow as attention is on as many bytes.
            select = Work(pricing.gpu.work(self._shrunk(op, cache.scan)).amounts)
            ready = (*before, graph.add("selection", select, stream=GPU, after=before, kind="compute"))
        here = 1.0 - elsewhere
        if here <= 0.0:
            return tuple(last)
        moved = past * cache.away * used * (1.0 - cache.locality * selects) if not elsewhere else 0.0
        if self.parts.attention.kind is Kind.RECURRENCE:
            moved = 0.0  # a state of fixed size stays on the GPU
        attend = pricing.gpu.work(self._shrunk(op, here * used)) + pricing.unpack(past * used, cache.unpack)
        if cache.recompute:
            attend = attend + pricing.rebuild(op.kv_read * cache.recompute * used)
        for _ in range(cache.slices if moved else 1):
            part = 1.0 / cache.slices if moved else 1.0
            wait = ready
            if moved:
                wait = (*ready, self._bring_cache(graph, history, moved * part, selects, ready))
            piece = Work(attend.amounts) * part + Work({}, attend.overhead_s)
            last.append(graph.add("attention", piece, stream=GPU, after=wait, kind="compute"))
            if moved:
                history.freed_slices.append(last[-1])
        return tuple(last)

    def _bring_cache(
        self, graph: GraphBuilder, history: History, size: float, selects: bool, ready: tuple[int, ...]
    ) -> int:
        """One slice of the cache to the GPU, ahead of its use as far as the buffers and the selection allow."""
        cache, pricing = self.policy.cache, self.pricing
        ahead = cache.prefetch * cache.slices + (1 if cache.slices == 1 else 2)
        position = len(history.freed_slices) - ahead
        wait: tuple[int, ...] = (history.freed_slices[position],) if position >= 0 else ()
        if selects and not cache.prefetch:
            wait = (*wait, *ready)
        elif cache.prefetch == 0:
            wait = (*wait, *ready[:1])
        whole = cache.ram + cache.disk
        from_disk = size * cache.disk / whole if whole else 0.0
        plain = size * (1.0 - cache.recompute) + self._inputs(size)
        if from_disk:
            read = pricing.read(from_disk, mapped=cache.mapped)
            wait = (graph.add("cache read", read, stream="disk cache", after=wait, kind="disk"),)
        copy = pricing.copy(plain, pinned=cache.pinned)
        return graph.add("cache", copy, stream="h2d cache", after=wait, kind="copy")

    def _inputs(self, size: float) -> float:
        """Bytes of the layer's inputs that are brought where a share of the cache is rebuilt from them."""
        op, cache = self.parts.attention, self.policy.cache
        if not cache.recompute or not op.kv_write:
            return 0.0
        per_byte = HALF * self.pricing.setup.model.hidden * self.step.tokens / op.kv_write
        return size * cache.recompute * per_byte

    def _attend_elsewhere(
        self, graph: GraphBuilder, op: Operator, size: float, share: float, before: tuple[int, ...]
    ) -> int:
        """Decode attention on the CPU or inside the drive: queries go there, results come back."""
        cache, pricing = self.policy.cache, self.pricing
        hop = Work({D2H: op.activation_bytes / 2, H2D: op.activation_bytes / 2}, 2.0 * self.policy.overheads.hop)
        if cache.attend == "storage":
            return graph.add(
                "attention in storage", Work({STORAGE: size}) + hop, stream="storage", after=before, kind="compute"
            )
        ready = before
        if cache.disk:
            read = pricing.read(size * cache.disk / cache.away)
            ready = (graph.add("cache read", read, stream="disk cache", kind="disk"), *before)
        work = pricing.attend_on_cpu(self._shrunk(op, share))
        return graph.add("attention on CPU", work + hop, stream=self._host, after=ready, kind="compute")

    def _store(self, graph: GraphBuilder, before: tuple[int, ...]) -> None:
        """New keys and values to the tiers that hold the cache."""
        op, cache = self.parts.attention, self.policy.cache
        size = op.kv_write * cache.bits * cache.away
        if self.policy.device == "cpu" or not size or op.kind is Kind.RECURRENCE:
            return
        # Only what is kept leaves; the inputs leave instead of the share that is rebuilt from them.
        size = size * (cache.kept if self.step.new > 1 else 1.0)
        size = size * (1.0 - cache.recompute) + self._inputs(size)
        out = self.pricing.copy(size, D2H, pinned=cache.pinned)
        task = graph.add("new cache", out, stream="d2h cache", after=before, kind="copy")
        if cache.disk:
            write = Work({WRITE: size * cache.disk / cache.away, DRAM: size})
            graph.add("new cache write", write, stream="disk cache write", after=task, kind="disk")

    # Routed experts ------------------------------------------------------------------------------------------------

    def _experts(self, graph: GraphBuilder, history: History, after: tuple[int, ...]) -> tuple[int, ...]:
        """Routed and shared experts of one GPU batch."""
        parts, policy, plan, pricing = self.parts, self.policy, self.experts, self.pricing
        router = after[-1]
        history.routers.append(router)
        if policy.device == "cpu":
            wait = after
            if plan.disk_loaded:
                read = pricing.read(plan.disk_loaded, mapped=policy.weights.mapped)
                wait = (*after, graph.add("experts read", read, stream="disk experts", after=router, kind="disk"))
            work = pricing.on_cpu((*parts.beside, *parts.experts))
            return (graph.add("experts", work, stream=self._host, after=wait, kind="compute"),)
        arrived: list[int] = []
        if plan.ahead:
            position = len(history.routers) - 1 - policy.experts.lookahead
            wait = (history.routers[position],) if position >= 0 else ()
            arrived.append(self._fetch(graph, "experts ahead", plan.ahead, wait))
        if plan.late:
            arrived.append(self._fetch(graph, "experts", plan.late, (router,)))
        done: list[int] = []
        if plan.cpu_share:
            done += self._experts_on_cpu(graph, history, router)
        own = Work({}, policy.overheads.expert * parts.touched)
        work = pricing.on_gpu(parts.beside) + pricing.on_gpu(parts.experts, 1.0 - plan.cpu_share) + own
        work = work + pricing.unpack(plan.used_bytes, policy.experts.unpack)
        done.append(graph.add("experts", work, stream=GPU, after=(*after, *arrived), kind="compute"))
        return tuple(done)

    def _fetch(self, graph: GraphBuilder, name: str, size: float, wait: tuple[int, ...]) -> int:
        """Experts to the GPU from where they lie; the share on disk is read first."""
        plan, pricing = self.experts, self.pricing
        if plan.disk_share:
            read = pricing.read(size * plan.disk_share)
            wait = (graph.add(f"{name} read", read, stream=f"disk {name}", after=wait, kind="disk"),)
        pinned = self.policy.experts.pinned
        task = graph.add(name, pricing.copy(size, pinned=pinned), stream=f"h2d {name}", after=wait, kind="copy")
        if self.policy.experts.returned:
            back = pricing.copy(size, D2H, pinned=pinned)
            task = graph.add(f"{name} back", back, stream=f"h2d {name}", after=task, kind="copy")
        return task

    def _experts_on_cpu(self, graph: GraphBuilder, history: History, router: int) -> list[int]:
        """Missed experts where they lie; a deferred share may end in the next layer."""
        parts, plan, pricing = self.parts, self.experts, self.pricing
        wait: tuple[int, ...] = (router,)
        if plan.cpu_from_disk:
            read = pricing.read(plan.cpu_from_disk, mapped=self.policy.weights.mapped)
            wait = (router, graph.add("experts read", read, stream="disk experts", after=router, kind="disk"))
        work = pricing.on_cpu(parts.experts, plan.cpu_share) + self._hop(parts.experts)
        later = self.policy.experts.deferred
        now = graph.add("experts on CPU", work * (1.0 - later), stream=self._host, after=wait, kind="compute")
        waits = [now, *history.owed]
        if later:
            history.owed = (graph.add("deferred experts", work * later, stream=self._host, after=now, kind="compute"),)
        return waits


def _first_third(pieces: list[int]) -> int:
    """Pieces that the projections before the attention need; 0 where a layer comes in one, which all wait for."""
    return max(1, len(pieces) // 3) if len(pieces) > 1 else 0
