"""LMCache: tiers of host memory and disk behind an engine's cache, as its YAML. Weights are none of its business.

Its own loader warns of an unknown key and makes nothing of a bad value, so files are checked here more strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import Files, Names, plain_text
from stowplan.exports.flat_yaml import Value, read_yaml, write_yaml
from stowplan.exports.places import layers_of, part_bytes, shares_of
from stowplan.models import model_kv_bytes_per_token
from stowplan.ops import Part
from stowplan.plan import Place, Plan, run_lengths
from stowplan.systems.base import DISK, RAM, Setup

CONFIG = "lmcache.yaml"
GIB = 2.0**30
_CHUNK = 256


class LmCacheSettings(BaseModel):
    """LMCache's keys that place bytes; sizes are GiB for each GPU of the engine.

    Attributes:
        chunk_size: tokens of one block.
        local_cpu, max_local_cpu_size: the tier in host memory.
        local_disk, max_local_disk_size: the tier on disk, a URL such as ``file:///nvme/cache/``.
        cache_policy: what is dropped first.
        extra_config: options of the tiers, such as ``use_odirect``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    chunk_size: Annotated[int, Field(ge=1, le=2**20)] = _CHUNK
    local_cpu: bool = True
    max_local_cpu_size: Annotated[float, Field(ge=0, le=2**20)] = 5.0
    local_disk: str | None = None
    max_local_disk_size: Annotated[float, Field(ge=0, le=2**24)] = 0.0
    cache_policy: Literal["LRU", "LFU", "FIFO", "MRU"] = "LRU"
    extra_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> LmCacheSettings:
        if (self.local_disk is None) != (self.max_local_disk_size == 0):
            raise ValueError("local_disk and max_local_disk_size come together")
        if self.local_disk is not None and not self.local_disk.startswith("file://"):
            raise ValueError("local_disk is a URL such as file:///nvme/cache/")
        return self


class LmCacheExporter:
    """Writer and reader of LMCache's YAML."""

    key = "lmcache"
    title = "LMCache"
    target = "LMCache 0.5.6 (in-process; LMCACHE_CONFIG_FILE)"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """Tiers as large as the cache that the plan keeps off the GPU.

        Raises:
            NotExpressible: no GPU.
        """
        if not setup.machine.gpus:
            raise NotExpressible("LMCache serves an engine on a GPU, and the machine has none")
        if plan.system == self.key:
            return self._plan(setup, Names.of(plan), _checked(plan.settings))
        sizes = _cache_bytes(setup, plan)
        settings = LmCacheSettings(
            max_local_cpu_size=_gib(sizes[RAM]) or 1.0,
            local_disk="file:///nvme/lmcache/" if sizes[DISK] else None,
            max_local_disk_size=_gib(sizes[DISK]),
        )
        return self._plan(setup, Names.of(plan), settings)

    def _plan(self, setup: Setup, names: Names, settings: LmCacheSettings) -> Plan:
        places: list[dict[str, Place]] = [
            dict.fromkeys((*part_bytes(layer), Part.KV.value), "gpu0") for layer in setup.model.layers
        ]
        return Plan(
            system=self.key,
            machine=names.machine,
            set=list(names.set),
            model=names.model,
            quant=names.quant,
            workload=names.workload,
            layers=run_lengths(places),
            embedding="gpu0",
            output="gpu0",
            settings=settings.model_dump(mode="json"),
        )

    def files(self, _: Setup, plan: Plan) -> Files:
        """The configuration, and how an engine is told of it."""
        settings = _checked(plan.settings).model_dump(mode="json", exclude_none=True)
        return Files(
            contents={CONFIG: write_yaml(settings)},
            main=CONFIG,
            command=["env", f"LMCACHE_CONFIG_FILE={CONFIG}", "vllm", "serve", plan.model, *_CONNECTOR],
            check=["python", "-c", _CHECK, CONFIG],
            check_says="LMCache's own reading of the sizes; None is a value that it did not understand",
            undo="Delete the folder that local_disk names.",
            notes=(
                "Sizes are GiB for each GPU of the engine.",
                "The tiers keep blocks of finished requests; running requests need theirs on the GPU.",
                "Weights are placed by the engine: export a plan for it as well.",
            ),
        )

    def model_named(self, _: str | Sequence[str]) -> str | None:
        """The configuration names no model."""
        return None

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a configuration; keys and values that LMCache would pass over are refused."""
        values = read_yaml(plain_text(text, self.title), "the configuration of LMCache")
        for name in ("max_local_cpu_size", "max_local_disk_size"):
            if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                values[name] = float(str(values[name]))
        if values.get("max_local_disk_size") == 0:
            values.pop("max_local_disk_size")
        return self._plan(setup, names, _checked(values))


_CONNECTOR = ("--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}')
_CHECK = (
    "import sys; from lmcache.v1.config import LMCacheEngineConfig as C; c = C.from_file(sys.argv[1]); "
    "print(c.chunk_size, c.local_cpu, c.max_local_cpu_size, c.local_disk, c.max_local_disk_size)"
)


def _checked(values: dict[str, Any] | dict[str, Value]) -> LmCacheSettings:
    try:
        return LmCacheSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"LMCache: {field}: {str(first['input'])[:40]}: {first['msg'].lower()}") from error


def _cache_bytes(setup: Setup, plan: Plan) -> dict[str, float]:
    """Bytes of the plan's cache on each tier but the GPU."""
    total = model_kv_bytes_per_token(setup.model) * plan.workload.capacity * plan.workload.batch
    share = total / len(setup.model.layers)
    found = {RAM: 0.0, DISK: 0.0}
    for places in layers_of(setup.model, plan):
        for tier, part in shares_of(places[Part.KV.value]).items():
            if tier in found:
                found[tier] += share * part
    return found


def _gib(size: float) -> float:
    """GiB, rounded up to a tenth."""
    return -(-size * 10 // GIB) / 10
