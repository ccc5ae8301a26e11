"""How routed tokens fall on one GPU's experts: how many they touch, and how many tiles of rows they fill."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stowplan.kernel_forms.elementary import Value

TILE_ROWS = (16, 32, 64, 128, 256)
"""Rows of the tiles that grouped products are built from."""
_DRAWS = 6
_SEED = 20240229


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Work of one GPU's experts.

    Attributes:
        touched: experts with at least one row.
        pairs: rows (token and expert) in total.
        tiles: tiles of `TILE_ROWS` rows in total, each expert rounded up.
    """

    touched: Value
    pairs: Value
    tiles: tuple[Value, ...]


@lru_cache(maxsize=65536)
def even_load(tokens: float, experts: int, experts_per_token: int, expert_parallel: int = 1) -> ExpertLoad:
    """Expected load when every token picks its experts at random, all experts alike.

    The number of rows of an expert is close to Poisson; the expected tiles follow from its mean m and a tile of t rows:
    at least the chance of any row, and m / t plus half a tile once tiles fill.
    """
    local = experts / expert_parallel
    pairs = tokens * experts_per_token / expert_parallel
    mean = pairs / local
    touched = local * (1.0 - (1.0 - experts_per_token / experts) ** tokens)
    any_row = touched / local
    filled = [mean / rows + 0.5 * (1.0 - math.exp(-mean / rows)) for rows in TILE_ROWS]
    return ExpertLoad(touched, pairs, tuple(local * max(any_row, tiles) for tiles in filled))


@lru_cache(maxsize=65536)
def skewed_load(
    tokens: int, experts: int, experts_per_token: int, expert_parallel: int, exponent: float, gathered: bool = False
) -> ExpertLoad:
    """Load of the busiest GPU when the experts' popularity follows a truncated power law.

    Popularity is drawn with density x**-exponent between one token and 80 % of the tokens (0.01 to 2 where there are
    fewer pairs than experts), the rule by which the measured grids were made (ai-dynamo/aiconfigurator). Its quantiles
    are spread over the GPUs in `_DRAWS` random orders and the busiest GPU's load is averaged. `gathered` puts the most
    popular experts together on one GPU instead.
    """
    counts = _power_law(tokens, experts, experts_per_token, exponent)
    local = experts // expert_parallel
    if gathered:
        return _average([sorted(counts, reverse=True)[:local]])
    source = random.Random(_SEED)
    drawn = []
    for _ in range(1 if expert_parallel == 1 else _DRAWS):
        source.shuffle(counts)
        groups = [counts[first : first + local] for first in range(0, experts, local)]
        drawn.append(max(groups, key=sum))
    return _average(drawn)


@lru_cache(maxsize=65536)
def strided_load(tokens: int, experts: int, experts_per_token: int, expert_parallel: int = 1) -> ExpertLoad:
    """Load of the first GPU when tokens go round the experts at a fixed stride, the most even routing there is."""
    stride = -(-experts // experts_per_token)
    counts = [0] * experts
    for choice in range(experts_per_token):
        if tokens < stride:
            for token in range(tokens):
                counts[(token * stride // tokens + choice * stride) % experts] += 1
        else:
            rounds, rest = divmod(tokens, experts)
            for expert in range(experts):
                counts[(expert + choice * stride) % experts] += rounds + (expert < rest)
    return _average([counts[: experts // expert_parallel]])


def _power_law(tokens: int, experts: int, experts_per_token: int, exponent: float) -> list[int]:
    """Tokens per expert at the quantiles of the truncated power law, whole and summing to all pairs."""
    pairs = tokens * experts_per_token
    low, high = (1.0, max(0.8 * tokens, 1.01)) if pairs > experts else (0.01, 2.0)
    power = 1.0 - exponent
    ends = low**power, high**power
    drawn = [(ends[0] + (ends[1] - ends[0]) * (i + 0.5) / experts) ** (1.0 / power) for i in range(experts)]
    drawn = [value * pairs / sum(drawn) for value in drawn]
    for _ in range(3):  # no expert gets a token twice; what is too much for one goes to the others
        kept = [min(value, float(tokens)) for value in drawn]
        over, room = sum(drawn) - sum(kept), sum(value for value in kept if value < tokens)
        if over <= 1e-9 or room <= 0.0:
            break
        drawn = [value if value >= tokens else value * (1.0 + over / room) for value in kept]
    counts, carried, reached = [], 0.0, 0
    for value in drawn:
        carried += value
        counts.append(math.floor(carried + 0.5) - reached)
        reached += counts[-1]
    return counts


def _average(drawn: Sequence[Sequence[int]]) -> ExpertLoad:
    """Mean load over several draws."""
    share = 1.0 / len(drawn)
    return ExpertLoad(
        touched=share * sum(sum(1 for rows in counts if rows) for counts in drawn),
        pairs=share * sum(sum(counts) for counts in drawn),
        tiles=tuple(share * sum(sum(-(-rows // tile) for rows in counts) for counts in drawn) for tile in TILE_ROWS),
    )
