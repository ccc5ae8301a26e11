"""LMCache's own reading of configurations: ``python host_lmcache.py FILE [FILE ...]``; a line of JSON for each."""

from __future__ import annotations

import json
import sys

from lmcache.v1.config import LMCacheEngineConfig

FIELDS = (
    "chunk_size",
    "local_cpu",
    "max_local_cpu_size",
    "local_disk",
    "max_local_disk_size",
    "cache_policy",
    "extra_config",
)

for path in sys.argv[1:]:
    config = LMCacheEngineConfig.from_file(path)
    print(json.dumps({name: getattr(config, name) for name in FIELDS}))
