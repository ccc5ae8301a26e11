"""JSON that a user gives: bounded in size and depth, refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile


def read_json(path: Path, largest: int = 4 * 2**20) -> Any:
    """Contents of a JSON file of at most `largest` bytes.

    Raises:
        BadFile: missing, too large, not UTF-8 or not JSON.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > largest:
        raise BadFile(f"{path}: is larger than {largest // 2**20} MiB, more than such a file ever is")
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Value of a JSON text.

    Raises:
        BadFile: not UTF-8, not JSON, nested too deeply, or a key given twice in one object.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, where))
    except UnicodeDecodeError as error:
        raise BadFile(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise BadFile(f"{where}: is nested too deeply to be such a file") from error
    except ValueError as error:
        raise BadFile(f"{where}: is not valid JSON ({str(error)[:100]})") from error


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadFile(f"{where}: '{twice[:60]}' is given twice")
    return found
