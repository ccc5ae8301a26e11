"""The answer to "what should I buy or change?": the plan, the price of every resource, and ranked single changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from stowplan.planner.dispatch import plan_for
from stowplan.planner.result import Planned, Request
from stowplan.planner.upgrades import Upgrade, upgrades
from stowplan.systems.base import Setup
from stowplan.whatif.differences import Difference, difference
from stowplan.whatif.outcome import Outcome, outcome_of
from stowplan.whatif.prices import ShadowPrice, shadow_prices, speed
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.workshop import Workshop, spread_of

_WORTH_NAMING = 1.005
"""A change that gains less than half a per cent gains nothing: the solver proves plans to 0.1 %."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change and what the best plan does with it.

    Attributes:
        title: in the user's words.
        outcome: of the new best plan.
        gain: how many times faster the objective is, with its 80 % interval.
        decode: decode tokens/s over those before, with its interval.
        price_usd: of the parts to buy, None where not known or nothing is bought.
        usd_per_token_per_s: price of each token/s of decode that is gained, None without a price or a gain.
        quality: whether the model's answers change with it.
    """

    title: str
    outcome: Outcome
    gain: Difference
    decode: Difference
    price_usd: float | None
    usd_per_token_per_s: float | None
    quality: bool

    @property
    def helps(self) -> bool:
        """Whether anything is gained beyond what the solver proves."""
        return self.gain.ratio >= _WORTH_NAMING


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What is, what every resource is worth, and what single changes bring.

    Attributes:
        scenario: what was asked.
        setup, planned, outcome: its best plan.
        speed: tokens/s of the objective, which shadow prices count.
        prices: of every resource.
        changes: most helpful first.
    """

    scenario: Scenario
    setup: Setup
    planned: Planned
    outcome: Outcome
    speed: float
    prices: list[ShadowPrice]
    changes: list[Change]


def what_if(shop: Workshop, scenario: Scenario, progress: Callable[[str], None] = lambda _: None) -> WhatIf:
    """Plan a scenario and everything that could be changed about it.

    Raises:
        DoesNotFit: nothing fits as it is. StowplanError: a name or value that cannot be.
    """
    system, request = shop.request(scenario, alternatives=True)
    request = replace(request, progress=progress)
    planned = plan_for(system, request)
    before = _outcome(system, request, planned)
    changes = [
        _change(system, before, each, planned.cost) for each in upgrades(system, request, planned, thorough=True)
    ]
    return WhatIf(
        scenario=scenario,
        setup=request.setup,
        planned=planned,
        outcome=before,
        speed=speed(request, planned),
        prices=shadow_prices(system, request, planned),
        changes=changes,
    )


def _outcome(system: str, request: Request, planned: Planned) -> Outcome:
    return outcome_of(planned, request.setup.machine, spread_of(system, request.setup, planned.prediction))


def _change(system: str, before: Outcome, upgrade: Upgrade, cost: float) -> Change:
    after = _outcome(system, upgrade.request, upgrade.planned)
    decode = difference(before, after, "decode_tokens_per_s")
    whole = difference(before, after, "request_tokens_per_s") or decode
    assert decode is not None and whole is not None, "both have plans"
    ratio = cost / upgrade.cost
    gain = Difference(ratio, ratio * whole.low / whole.ratio, ratio * whole.high / whole.ratio)
    gained = upgrade.decode_tokens_per_s * (1.0 - 1.0 / decode.ratio)
    per_token = None
    if upgrade.price_usd is not None and min(decode.ratio, ratio) >= _WORTH_NAMING:
        per_token = upgrade.price_usd / gained
    return Change(upgrade.title, after, gain, decode, upgrade.price_usd, per_token, upgrade.quality)


def as_document(answer: WhatIf) -> dict[str, Any]:
    """The answer as one JSON document."""
    return {
        "schema_version": "stowplan.whatif/1",
        "scenario": json.loads(answer.scenario.text),
        "plan": json.loads(answer.outcome.text) | {"moves": [asdict(move) for move in answer.outcome.moves]},
        "speed_tokens_per_s": answer.speed,
        "shadow_prices": [asdict(price) for price in answer.prices],
        "changes": [
            {
                "title": change.title,
                "decode_tokens_per_s": change.outcome.figure("decode_tokens_per_s"),
                "ttft_s": change.outcome.figure("ttft_s"),
                "interval": change.outcome.interval,
                "gain": asdict(change.gain) | {"certain": change.gain.certain},
                "decode_ratio": asdict(change.decode) | {"certain": change.decode.certain},
                "price_usd": change.price_usd,
                "usd_per_token_per_s": change.usd_per_token_per_s,
                "quality": change.quality,
            }
            for change in answer.changes
        ],
    }
