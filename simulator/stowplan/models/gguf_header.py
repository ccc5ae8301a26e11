"""Headers of GGUF files: metadata and tensor descriptions, read within fixed limits and never the weights."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from stowplan.errors import BadFile
from stowplan.models.formats import Format, bytes_for, formats_by_ggml_id

MOST_ENTRIES = 65_536
MOST_TENSORS = 262_144
MOST_STRINGS = 4_000_000  # over all arrays: the largest vocabularies have some 300,000
LONGEST_NAME = 512
LONGEST_TEXT = 4096
LONGEST_LIST = 4096
LARGEST_HEADER = 512 * 2**20
MOST_WEIGHTS = 2**56
_DEEPEST_ARRAY = 3

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRUCTS = {number: struct.Struct(code) for number, code in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

MetaValue = int | float | bool | str | list[int | float | bool]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header describes it.

    Attributes:
        name: as in the file.
        shape: dimensions, fastest first: (columns, rows, matrices).
        format: its storage format.
        offset: first byte after the start of the data.
        bytes: exact size.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata (long lists and texts left out) and tensors of one file."""

    metadata: dict[str, MetaValue]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> GgufHeader:
    """Header of one GGUF file.

    Raises:
        BadFile: unreadable, truncated, corrupt, or beyond the limits of this module.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size < 24:
                raise BadFile(f"{path}: is truncated: {size} bytes are fewer than a GGUF header has")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return parse_header(content, str(path))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read ({error})") from error


def parse_header(content: bytes | mmap.mmap, where: str) -> GgufHeader:
    """Header at the start of a file's whole content.

    Raises:
        BadFile: truncated, corrupt, or beyond the limits of this module.
    """
    return _Parser(content, where).header()


class _Parser:
    """A position in the header, and the checks that every step forward must pass."""

    def __init__(self, content: bytes | mmap.mmap, where: str) -> None:
        self._content = content
        self._where = where
        self._size = len(content)
        self._end = min(self._size, LARGEST_HEADER)
        self._at = 0
        self._strings_left = MOST_STRINGS

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            raise self._bad("does not start with 'GGUF', so it is no GGUF file")
        version = self._unpack(_U32)
        if version not in {2, 3}:
            raise self._bad(f"has GGUF version {version}; versions 2 and 3 (little endian) can be read")
        tensor_count, entry_count = self._unpack(_U64), self._unpack(_U64)
        if tensor_count > MOST_TENSORS or entry_count > MOST_ENTRIES:
            raise self._bad(
                f"claims {tensor_count} tensors and {entry_count} metadata entries, more than any model has"
            )
        metadata = self._metadata(entry_count)
        raw = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self._bad("has a 'general.alignment' that is no power of two")
        start = -(-self._at // alignment) * alignment
        self._check_places(raw, start)
        return GgufHeader(metadata, tuple(raw))

    def _metadata(self, count: int) -> dict[str, MetaValue]:
        metadata: dict[str, MetaValue] = {}
        seen: set[str] = set()
        for _ in range(count):
            key = self._text(LONGEST_NAME, "a metadata key")
            if key in seen:
                raise self._bad(f"gives the metadata entry '{key[:60]}' twice")
            seen.add(key)
            value = self._value(self._unpack(_U32), key)
            if value is not None:
                metadata[key] = value
        return metadata

    def _value(self, kind: int, key: str) -> MetaValue | None:
        """A value worth keeping; long texts and lists are stepped over and give None."""
        if kind in _STRUCTS:
            number: MetaValue = self._unpack(_STRUCTS[kind])
            return number
        if kind == _STRING:
            length = self._unpack(_U64)
            content = self._take(length) if length <= LONGEST_TEXT else self._skip(length)
            return self._decode(content, f"metadata entry '{key[:60]}'") if content else None
        if kind == _ARRAY:
            return self._array(key, 1)
        raise self._bad(f"has a value of unknown type {kind} in metadata entry '{key[:60]}'")

    def _array(self, key: str, depth: int) -> MetaValue | None:
        kind, count = self._unpack(_U32), self._unpack(_U64)
        if kind in _STRUCTS:
            step = _STRUCTS[kind]
            content = self._take(count * step.size) if count <= LONGEST_LIST else self._skip(count * step.size)
            return [value for (value,) in step.iter_unpack(content)] if content else None
        if kind not in {_STRING, _ARRAY} or depth > _DEEPEST_ARRAY:
            raise self._bad(f"has an array of unknown type {kind} or nested too deeply in metadata entry '{key[:60]}'")
        self._strings_left -= count
        if self._strings_left < 0:
            raise self._bad(f"has a list of {count} texts in metadata entry '{key[:60]}', more than any vocabulary")
        for _ in range(count):
            if kind == _STRING:
                self._skip(self._unpack(_U64))
            else:
                self._array(key, depth + 1)
        return None

    def _tensor(self) -> TensorInfo:
        name = self._text(LONGEST_NAME, "a tensor name")
        dimensions = self._unpack(_U32)
        if not 1 <= dimensions <= 4:
            raise self._bad(f"gives tensor '{name[:60]}' {dimensions} dimensions; it may have 1 to 4")
        shape = tuple(self._unpack(_U64) for _ in range(dimensions))
        kind, offset = self._unpack(_U32), self._unpack(_U64)
        weights = 1
        for length in shape:
            weights *= length
        if not 1 <= weights <= MOST_WEIGHTS:
            raise self._bad(f"gives tensor '{name[:60]}' an impossible shape")
        stored = formats_by_ggml_id().get(kind)
        if stored is None:
            raise self._bad(f"stores tensor '{name[:60]}' in format number {kind}, which is not known")
        if shape[0] % stored.block:
            raise self._bad(
                f"stores tensor '{name[:60]}' in {stored.key}, but its rows of {shape[0]} do not fit blocks"
            )
        return TensorInfo(name, shape, stored, offset, bytes_for(stored, weights // shape[0], shape[0]))

    def _check_places(self, tensors: list[TensorInfo], start: int) -> None:
        """Names are unique; data lies within the file and does not overlap."""
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                raise self._bad(f"describes tensor '{tensor.name[:60]}' twice")
            seen.add(tensor.name)
        last, last_name = 0, ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset < last:
                raise self._bad(f"has tensors '{last_name[:60]}' and '{tensor.name[:60]}' in the same place")
            last, last_name = tensor.offset + tensor.bytes, tensor.name
        if start + last > self._size:
            raise self._bad(f"is truncated: its tensors need {start + last} bytes, it has {self._size}")

    def _unpack(self, step: struct.Struct) -> int:
        at = self._at
        if at + step.size > self._end:
            raise self._cut()
        self._at = at + step.size
        value: int = step.unpack_from(self._content, at)[0]
        return value

    def _take(self, count: int) -> bytes:
        at = self._at
        self._skip(count)
        return self._content[at : self._at]

    def _skip(self, count: int) -> bytes:
        if self._at + count > self._end:
            raise self._cut()
        self._at += count
        return b""

    def _text(self, longest: int, what: str) -> str:
        length = self._unpack(_U64)
        if length > longest:
            raise self._bad(f"has {what} of {length} bytes; at most {longest} are possible")
        return self._decode(self._take(length), what)

    def _decode(self, content: bytes, what: str) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad(f"has {what} that is not UTF-8") from error

    def _cut(self) -> BadFile:
        if self._size > LARGEST_HEADER:
            return self._bad(f"has a header beyond {LARGEST_HEADER // 2**20} MiB")
        return self._bad("is truncated: its header goes on after the end of the file")

    def _bad(self, problem: str) -> BadFile:
        return BadFile(f"{self._where}: {problem}")
