"""Synthetic routing with popularity and temporal locality.

Every expert has a latent score ``x(t) = p z + sqrt(1 - p^2) y(t)``: ``z`` is how popular it is in this text (normal
quantiles in random order), ``y`` a stationary first-order autoregression (how long a subject lasts). A token takes the
experts with the largest scores. Popularity ``p`` and persistence ``r`` are the only two parameters; both 0 is uniform,
independent routing. A third one, a share of ``y`` drawn anew for each token, brings the locality of segments closer to
what is published but not the hit rates of caches that were set aside, so there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, InputError
from stowplan.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class RoutingProfile:
    """What a layer's routing looks like.

    Attributes:
        popularity: how unevenly experts are chosen over a whole text, 0 (evenly) to below 1.
        persistence: correlation of what popularity leaves of a score between neighbouring tokens, 0 (none) to below 1.
        kind, source: how the two are known, and from where.
    """

    popularity: float = 0.0
    persistence: float = 0.0
    kind: str = "assumed"
    source: str = "uniform and independent"

    def __post_init__(self) -> None:
        for name in ("popularity", "persistence"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"routing profile: {name} {getattr(self, name)} must be from 0 to below 1")


UNIFORM = RoutingProfile()


def generate(profile: RoutingProfile, experts: int, active: int, tokens: int, seed: int = 0) -> RoutingTrace:
    """A trace of `tokens` tokens that each choose `active` of `experts`; the same arguments give the same trace.

    Raises:
        InputError: more active experts than there are, or no token.
    """
    import numpy as np

    if not 1 <= active <= experts or tokens < 1:
        raise InputError(f"cannot route {tokens} tokens to {active} of {experts} experts each")
    random = np.random.default_rng(seed)
    # Every text is as uneven as the next: drawn independently, few experts make one text far more local than another.
    popular = random.permutation([NormalDist().inv_cdf((each + 0.5) / experts) for each in range(experts)])
    noise = random.standard_normal((tokens, experts))
    r, p = profile.persistence, profile.popularity
    state = noise[0]
    scores = np.empty((tokens, experts))
    fresh, kept = (1.0 - r * r) ** 0.5, (1.0 - p * p) ** 0.5
    for number in range(tokens):
        state = noise[0] if number == 0 else r * state + fresh * noise[number]
        scores[number] = p * popular + kept * state
    chosen = np.sort(np.argpartition(-scores, active - 1, axis=1)[:, :active], axis=1)
    return RoutingTrace(experts, tuple(map(tuple, chosen.tolist())), tuple(tuple(row) for row in scores.tolist()))


def profile_for(model: str) -> RoutingProfile:
    """Profile of a model by key; the fitted profiles' own mean, marked as assumed, for a model that none was fitted to.

    Raises:
        BadFile: the shipped table lacks a field.
    """
    table = _profiles()
    return table.get(model) or table["default"]


@lru_cache(maxsize=1)
def _profiles() -> dict[str, RoutingProfile]:
    path = data_folder("traces") / "routing.toml"

    def profile(name: str, entry: Any) -> RoutingProfile:
        try:
            return RoutingProfile(
                float(entry["popularity"]), float(entry["persistence"]), str(entry["source"]), str(entry["where"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{path}: [{name}] needs popularity, persistence, source and where ({error})") from error

    found = {name: profile(name, entry) for name, entry in read_toml(path)["profile"].items()}
    if "default" not in found:
        raise BadFile(f"{path}: [profile.default] is missing")
    return found
