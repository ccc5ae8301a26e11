"""The documents of ``stowplan list KIND --json``: texts with units, as people read them, one row per name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, RootModel

from stowplan.cli.document_record import DocumentRecord

_NAME = "name for people"


class ListedMachine(DocumentRecord):
    """A row of ``stowplan list machines``."""

    machine: str = Field(description="key, as after --on")
    what: str = Field(alias="what it is", description=_NAME)


class ListedGpu(DocumentRecord):
    """A row of ``stowplan list gpus``."""

    gpu: str = Field(description="key")
    memory: str = Field(description="memory, a text in GiB")
    bandwidth: str = Field(description="of the memory, a text in GB/s or TB/s")
    fp16: str = Field(description="peak in 16-bit floats, a text in TFLOP/s; - where not known")
    name: str = Field(description=_NAME)


class ListedCpu(DocumentRecord):
    """A row of ``stowplan list cpus``."""

    cpu: str = Field(description="key")
    cores: str = Field(description="number of cores")
    memory: str = Field(description="memory channels and kind")
    name: str = Field(description=_NAME)


class ListedMemory(DocumentRecord):
    """A row of ``stowplan list memory``."""

    memory: str = Field(description="key")
    per_channel: str = Field(alias="per channel", description="bandwidth of a channel, a text in GB/s")
    name: str = Field(description=_NAME)


class ListedDisk(DocumentRecord):
    """A row of ``stowplan list disks``."""

    disk: str = Field(description="key")
    read: str = Field(description="reading, a text in GB/s")
    write: str = Field(description="writing, a text in GB/s")
    name: str = Field(description=_NAME)


class ListedLink(DocumentRecord):
    """A row of ``stowplan list links``."""

    link: str = Field(description="key")
    each_way: str = Field(alias="each way", description="bandwidth in one direction, a text in GB/s, per lane if said")
    latency: str = Field(description="a text in us or ns")
    name: str = Field(description=_NAME)


class ListedModel(DocumentRecord):
    """A row of ``stowplan list models``."""

    model: str = Field(description="key")
    parameters: str = Field(description="published parameters, a text in billions (B); - where none are")
    layers: str = Field(description="number of layers")
    experts: str = Field(description="routed experts per token of those in a layer; - without")
    context: str = Field(description="tokens that it was made for")
    name: str = Field(description=_NAME)


class ListedFormat(DocumentRecord):
    """A row of ``stowplan list formats``."""

    format: str = Field(description="key")
    bits: str = Field(alias="bits per weight", description="bits per weight, scales included")
    block: str = Field(description="weights of a block")
    family: str = Field(description="whose format it is")


class ListedMix(DocumentRecord):
    """A row of ``stowplan list mixes``."""

    mix: str = Field(description="key, as after --quant")
    file: str = Field(description="GGUF or checkpoint")
    what: str = Field(alias="what it is", description="formats of its matrices")


class ListedSystem(DocumentRecord):
    """A row of ``stowplan list systems``."""

    system: str = Field(description="key, as after --system")
    what: str = Field(alias="what it does", description="its idea in one sentence")


Rows = (
    list[ListedMachine]
    | list[ListedGpu]
    | list[ListedCpu]
    | list[ListedMemory]
    | list[ListedDisk]
    | list[ListedLink]
    | list[ListedModel]
    | list[ListedFormat]
    | list[ListedMix]
    | list[ListedSystem]
)


class ListDocument(RootModel[Rows]):
    """The document of ``stowplan list KIND --json``: rows of that kind."""


def list_document(rows: Sequence[Mapping[str, str]]) -> ListDocument:
    """The document of a list whose rows have a text per column."""
    return ListDocument.model_validate(list(rows))
