"""What llama.cpp copies between host memory and GPUs while it computes, and what starting a copy costs."""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.figures import Figures
from stowplan.machines.machine import Gpu, Machine
from stowplan.ops import Operator, Step
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_offload import copies_all_experts, pinned, since
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import ChainTask
from stowplan.work import Work

_CAPTURED_PIECES = "2026-01-24"  # llama.cpp PR 18934: a CUDA graph for every run of operators between copies
_CAPTURED_OLDER = "2026-07-16"  # PR 25749: on Volta and Turing, too
_NEVER_CAPTURED = ("16n",)  # Pascal


def captures_pieces(settings: LlamaCppSettings, gpu: Gpu) -> bool:
    """Whether decode launches what lies between two copies as one CUDA graph, instead of kernel by kernel.

    Before, there was one graph for each device, given up as soon as a step held copies; the fork gives up still.
    """
    if settings.engine != "llama.cpp" or gpu.vendor != "nvidia" or gpu.process in _NEVER_CAPTURED:
        return False
    return since(settings, _CAPTURED_PIECES if "bf16" in gpu.peaks else _CAPTURED_OLDER)


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of one engine on one machine.

    Attributes:
        settings: of the engine.
        unified: whether GPU and host have one memory.
        latency: seconds to start a copy and wait for it, the launches of what follows included.
        captured: the same of every GPU in decode, where what follows may be one CUDA graph.
        staged: times that memory moves a byte which is copied from page to page first.
    """

    settings: LlamaCppSettings
    unified: bool
    latency: float
    captured: tuple[float, ...]
    staged: float

    @staticmethod
    def build(settings: LlamaCppSettings, machine: Machine, figures: Figures) -> Copies:
        """Copies with the engine's constants."""
        plain, graph = (figures.value(f"llama.cpp.gpu.copy_latency{kind}") for kind in ("", "_captured"))
        captured = tuple(graph if captures_pieces(settings, gpu) else plain for gpu in machine.gpus)
        staged = figures.value("llama.cpp.gpu.staged_traffic")
        return Copies(settings, any(gpu.unified for gpu in machine.gpus), plain, captured, staged)

    def activations(self, source: str, target: str, size: float, name: str, step: Step) -> list[ChainTask]:
        """Copy of activations between two places; free of bytes in unified memory, never free of latency."""
        if source == target:
            return []
        if self.unified:
            return [ChainTask(name, Work({}, self.latency), "copy", "copy")]
        if RAM in (source, target):
            gpu, way = (target, "h2d") if source == RAM else (source, "d2h")
            latency = self.captured[int(gpu.removeprefix("gpu"))] if step.tokens == 1 else self.latency
            work = Work({f"{gpu}.{way}": size, "host.dram": size}, latency)
            return [ChainTask(name, work, f"{gpu} copy", "copy")]
        return [ChainTask(name, Work({"peer": size}, self.latency), f"{target} copy", "copy")]

    def weights(
        self, gpu: str, op: Operator, experts: tuple[int, int] | None, prefix: str, *, overridden: bool
    ) -> ChainTask:
        """Copy of a product's weights; of routed ones, all of the `experts` (total, active) or those that are used."""
        size = op.weight_bytes
        if experts is not None:
            size *= experts[0] / op.matrices if copies_all_experts(self.settings) else 1.0
        if pinned(self.settings, overridden=overridden):
            work = Work({f"{gpu}.h2d": size, "host.dram": size}, self.latency)
        else:
            work = self._pageable(gpu, size)
        return ChainTask(f"{prefix}{op.name} weights", work, f"{gpu} copy", "copy")

    def cache(self, gpu: str, op: Operator, prefix: str) -> list[ChainTask]:
        """Copies of what is new to a cache in host memory, and of all of it to where attention runs."""
        new = Work({f"{gpu}.d2h": op.kv_write, "host.dram": op.kv_write}, self.latency)
        return [
            ChainTask(f"{prefix}new cache", new, f"{gpu} copy", "copy"),
            ChainTask(f"{prefix}cache", self._pageable(gpu, op.kv_read), f"{gpu} copy", "copy"),
        ]

    def _pageable(self, gpu: str, size: float) -> Work:
        """One core copies pageable memory to a page-locked buffer, from where it is read again."""
        return Work({f"{gpu}.h2d": size, "host.copier": size, "host.dram": self.staged * size}, self.latency)
