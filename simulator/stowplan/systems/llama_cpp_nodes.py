"""Where llama.cpp's weights lie on machines with several memory nodes, and how its threads reach them.

Pages belong to the node of the thread that touches them first, unless ``numactl`` spreads them. Read files are touched
by the thread that loads them, so they fill one node after another and every operator reads one node. Mapped files with
``--numa`` are not populated at load: the threads that compute touch their own rows first, and rows are divided among
threads alike in every step (llama.cpp ``ggml_numa_init``, ``llama_mmap``). Run-time repacking works in place: it moves
no page. Firmware that interleaves over the sockets leaves nothing to place; where it cannot interleave all channels of
a node, pages fill one set of channels after another.
"""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.figures import Figures
from stowplan.machines.machine import Machine
from stowplan.systems.llama_cpp_settings import LlamaCppSettings


def spread(machine: Machine, load_mode: str) -> dict[str, str]:
    """Settings under which the weights of every operator lie on all memory nodes; none where there is one node.

    Mapped pages are spread by the threads that read them, read ones by ``numactl``.
    """
    if machine.nodes == 1:
        return {}
    return {"numa": "distribute"} | ({"numactl": "interleave"} if load_mode != "mmap" else {})


@dataclass(frozen=True, slots=True)
class Reach:
    """How threads reach the weights of one operator.

    Attributes:
        cores: physical cores that may run threads.
        remote: share of the weights that a thread reads from another socket.
        crossing: bytes over the busier direction of the links between sockets, for every byte read.
        memory: share of all sockets' memory bandwidth that serves the operator.
        apart: share of a thread's fellows that run on another socket.
    """

    cores: int
    remote: float = 0.0
    crossing: float = 0.0
    memory: float = 1.0
    apart: float = 0.0

    @staticmethod
    def of(machine: Machine, settings: LlamaCppSettings, figures: Figures) -> Reach:
        """The reach that settings mean on a machine."""
        sockets, nodes, sets = machine.sockets, machine.nodes, machine.interleave_sets
        if nodes == sets == sockets == 1:
            return Reach(machine.cores)
        others = (sockets - 1) / sockets
        bound = nodes > 1 and (settings.numactl == "bind" or settings.numa == "isolate")
        cores, apart = (machine.cores // nodes, 0.0) if bound else (machine.cores, others)
        if sets < sockets or (settings.numactl == "interleave" and nodes > 1):
            crossing = 1.0 / sockets if bound else others / sockets
            return Reach(cores, others, crossing, 1.0 if sets < sockets else nodes / sets, apart)
        if bound:
            return Reach(cores, memory=1.0 / sets)
        if settings.numa is not None and settings.load_mode == "mmap" and nodes > 1:
            stray = figures.value("llama.cpp.cpu.strays") if sockets > 1 else 0.0
            return Reach(cores, stray, stray / sockets, nodes / sets, apart)
        return Reach(cores, others, 1.0 / sockets if sockets > 1 else 0.0, 1.0 / sets, apart)

    def waiting(self, remote: float) -> float:
        """Waiting for memory in units of waiting for one's own, where another socket's takes `remote` times as long."""
        return 1.0 + self.remote * (remote - 1.0)

    def barrier(self, remote: float) -> float:
        """Passing a counter from thread to thread in units of passing it within a socket."""
        return 1.0 + self.apart * (remote - 1.0)
