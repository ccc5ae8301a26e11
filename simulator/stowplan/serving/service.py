"""A service as users meet it: engines of one kind, how requests are spread over them, and one way to replay a trace."""

from __future__ import annotations

from dataclasses import dataclass, field

from stowplan.errors import InputError
from stowplan.serving.disaggregated import Handover, Stage, replay_disaggregated
from stowplan.serving.fleet import Migration, replay_fleet
from stowplan.serving.from_plan import Engine
from stowplan.serving.outcome import Replay, Watch
from stowplan.serving.policies import Caching
from stowplan.serving.requests import Requests
from stowplan.serving.routers import RouterName


@dataclass(frozen=True, slots=True)
class Service:
    """What serves.

    Attributes:
        engine: one engine; all are alike.
        scheduler: who decides which requests run.
        caching: prefix cache of every engine; None for none.
        engines: engines that do everything; with `prompt_engines`, those that decode.
        prompt_engines: engines that only process prompts; 0 where every engine does both.
        router, migration: how requests are spread, and whether they move.
        handover: how caches get from prompt engines to decode engines.
        ahead: whether an engine schedules a step while the one before it runs.
        request_s: seconds that a request spends outside the scheduler.
    """

    engine: Engine
    scheduler: str
    caching: Caching | None = None
    engines: int = 1
    prompt_engines: int = 0
    router: RouterName = "least-loaded"
    migration: Migration | None = None
    handover: Handover = field(default_factory=lambda: Handover(0.0))
    ahead: bool = False
    request_s: float = 0.0

    @property
    def machines(self) -> int:
        """Engines of all kinds."""
        return self.engines + self.prompt_engines

    def replay(self, requests: Requests, watch: Watch | None = None, workers: int = 1) -> Replay:
        """Replay requests, as clients see them.

        Args:
            requests: what arrives.
            watch: told when it begins; None for nobody.
            workers: processes that may share a long trace between them; the result is the same.

        Raises:
            InputError: what the scheduler or the engines cannot do; see `stowplan.serving.fleet.replay_fleet` and
                `stowplan.serving.disaggregated.replay_disaggregated`.
        """
        return self._replay(requests, watch, workers).seen_by_clients(self.request_s)

    def _replay(self, requests: Requests, watch: Watch | None, workers: int) -> Replay:
        step_time, limits = self.engine.step_time, self.engine.limits
        if self.prompt_engines:
            if self.caching is not None or self.migration is not None:
                raise InputError("prompt engines: work without prefix cache and migration; leave one of them out")
            counts = self.prompt_engines, self.engines
            prompts, decodes = (Stage(count, step_time, limits, ahead=self.ahead) for count in counts)
            return replay_disaggregated(requests, prompts, decodes, self.handover, watch)
        return replay_fleet(
            requests,
            step_time,
            limits,
            self.scheduler,
            engines=self.engines,
            router=self.router,
            migration=self.migration,
            caching=self.caching,
            ahead=self.ahead,
            watch=watch,
            workers=workers,
        )
