"""Options of a service that would change nothing next to others: each such pair is told in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from stowplan.cli.serving_options import Router, SchedulerName
from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.cli.serving_options import ServiceOptions, TraceOptions
    from stowplan.systems.vllm_settings import VllmSettings


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        traced, options: the options.
        several: whether the number of engines is above 1, or left open.
        vllm: settings of the vLLM that serves, as far as they are known; None where llama.cpp serves.
    """

    traced: TraceOptions
    options: ServiceOptions
    several: bool
    vllm: VllmSettings | None

    @property
    def cached(self) -> bool:
        """Whether engines keep a prefix cache, if the trace says which prompts begin alike."""
        if self.options.prompt_engines:
            return False
        own = self.vllm is not None and self.vllm.traits.prefix_caching and self.vllm.prefix_caching
        return own or self.options.prefix_cache or bool(self.options.kv_tier)


class _Rule(NamedTuple):
    """Options that would change nothing, and the sentence that says so."""

    applies: Callable[[Asked], bool]
    sentence: str


_APART = (
    _Rule(
        lambda asked: asked.options.scheduler is not None,
        "--scheduler: prompt engines take whole prompts, first come, first served; leave it out",
    ),
    _Rule(
        lambda asked: asked.options.prefix_cache or bool(asked.options.kv_tier) or asked.options.migrate,
        "--prompt-engines: work without --prefix-cache, --kv-tier and --migrate; leave those out",
    ),
    _Rule(
        lambda asked: asked.options.max_waiting is not None or asked.options.timeout is not None,
        "--prompt-engines: know no --max-waiting and no --timeout; leave those out",
    ),
    _Rule(
        lambda asked: asked.options.router is not None,
        "--router: where prompt engines serve, the least busy one always takes a request; leave it out",
    ),
    _Rule(
        lambda asked: asked.options.handover is None,
        "--prompt-engines: needs the rate at which caches are handed over, such as --handover 50GB/s",
    ),
)
_LLAMA_CPP = (
    _Rule(
        lambda asked: asked.options.block_size is not None,
        "--block-size: only vLLM's cache has blocks of a size of your choice; leave it out or give --engine vllm",
    ),
)
_VLLM = (
    _Rule(
        lambda asked: asked.options.scheduler is not None,
        "--scheduler: vLLM has its own, which is replayed; leave it out",
    ),
    _Rule(
        lambda asked: asked.options.step_overhead is not None,
        "--step-overhead: is part of what is known of vLLM; leave it out",
    ),
    _Rule(
        lambda asked: (
            asked.vllm is not None
            and not asked.vllm.traits.prefix_caching
            and (asked.options.prefix_cache or bool(asked.options.kv_tier))
        ),
        "--prefix-cache, --kv-tier: the plan's version of vLLM has no prefix cache; leave them out",
    ),
)
_ANY = (
    _Rule(
        lambda asked: asked.options.handover is not None and not asked.options.prompt_engines,
        "--handover: says how fast prompt engines hand over; give --prompt-engines too",
    ),
    _Rule(
        lambda asked: asked.options.migrate and not asked.several,
        "--migrate: sequences can only move where there are two engines or more; give --engines",
    ),
    _Rule(
        lambda asked: asked.options.router is not None and not asked.several,
        "--router: chooses among engines, and there is one; give --engines 2 or more, or leave it out",
    ),
    _Rule(
        lambda asked: asked.options.router is Router.PREFIX and not asked.cached,
        "--router prefix: looks at the engines' prefix caches, and they have none; add --prefix-cache or leave it out",
    ),
    _Rule(
        lambda asked: asked.options.eviction is not None and not asked.cached,
        "--eviction: says which blocks a prefix cache lets go, and there is none; add --prefix-cache or leave it out",
    ),
    _Rule(
        lambda asked: (
            asked.traced.conversations and not asked.cached and asked.options.scheduler is not SchedulerName.FAIR
        ),
        "--conversations: change nothing without a prefix cache or clients to be fair to; add --prefix-cache or "
        "--scheduler fair, or leave them out",
    ),
)


def check_together(asked: Asked) -> None:
    """Refuse options that would change nothing.

    Raises:
        InputError: says which option, why, and what to do instead.
    """
    rules = (_VLLM if asked.vllm else _LLAMA_CPP) + (_APART if asked.options.prompt_engines else ()) + _ANY
    for rule in rules:
        if rule.applies(asked):
            raise InputError(rule.sentence)
