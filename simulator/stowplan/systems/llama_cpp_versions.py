"""How llama.cpp's command line changed: which versions count layers how, and which flags they have.

The flags of one version are refused by another, so a written command names the profile that it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stowplan.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Profile:
    """One span of versions.

    Attributes:
        key: name for ``--target``.
        engine, release: the settings of plans that it can run (see `LlamaCppSettings`).
        builds: the span, in the engine's own counting.
        load_modes: words that ask for ``mmap``, ``none`` and ``mlock``.
        fit_off: words that forbid the engine to change what a plan leaves open.
        fused: words that a routed model gets (fused expert kernels of the fork).
        source: where this was read.
    """

    key: str
    engine: str
    release: str
    builds: str
    load_modes: Mapping[str, tuple[str, ...]]
    fit_off: tuple[str, ...]
    fused: tuple[str, ...]
    source: str


_SWITCHES: Mapping[str, tuple[str, ...]] = MappingProxyType({"mmap": (), "none": ("--no-mmap",), "mlock": ("--mlock",)})
_LOAD_MODE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {mode: ("-lm", mode) for mode in ("mmap", "none", "mlock")}
)

PROFILES = (
    Profile(
        "llama.cpp",
        "llama.cpp",
        "current",
        "since July 2026 (b10114); checked with 0c1e57098 of 2026-10-01 (v0.5.0)",
        _LOAD_MODE,
        ("--fit", "off"),
        (),
        "common/arg.cpp of 0c1e57098; pull request 20834 brought --load-mode",
    ),
    Profile(
        "llama.cpp-2025-12",
        "llama.cpp",
        "current",
        "December 2025 to July 2026",
        _SWITCHES,
        ("--fit", "off"),
        (),
        "pull request 18148: -ngl counts the output layer first; --no-mmap and --mlock are switches",
    ),
    Profile(
        "llama.cpp-2025-09",
        "llama.cpp",
        "pre-2025-12",
        "September to November 2025",
        _SWITCHES,
        (),
        (),
        "-ngl counts repeating layers, the output only above them; -fa takes on and off; no --fit",
    ),
    Profile(
        "ik_llama.cpp",
        "ik_llama.cpp",
        "pre-2025-12",
        "August 2026 (8337e4cd3)",
        _SWITCHES,
        (),
        ("-fmoe",),
        "common/common.cpp and src/llama.cpp of 8337e4cd3: i_gpu_start = n_layer - N",
    ),
)


def profile_for(engine: str, release: str) -> Profile:
    """The newest profile that runs plans of an engine and a rule of ``-ngl``."""
    return next(each for each in PROFILES if each.engine == engine and each.release in (release, "pre-2025-12"))


def named_profile(key: str) -> Profile:
    """A profile by its key.

    Raises:
        UnknownName: no such profile.
    """
    for profile in PROFILES:
        if profile.key == key:
            return profile
    raise UnknownName("target", key[:60], [profile.key for profile in PROFILES])
