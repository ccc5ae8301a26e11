"""Settings of the property tests: no deadline, since machines differ, and examples that are the same in every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("stowplan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("stowplan")
