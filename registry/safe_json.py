"""JSON that someone else wrote, read without trust: a regular file, bounded in bytes, depth and values, and nothing but JSON.

Python's parser alone takes NaN, keys that occur twice, numbers of a million digits and lone surrogates, each of which would
fail later and far away. Size and number of values are looked at before anything is parsed, so that memory stays in proportion.
"""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError
from ..core.tree import DEEPEST, deeper_than

CONFIG, INDEX = 8 << 20, 64 << 20
"""Bytes of the longest config, manifest or record, and of the longest index that is read (DeepSeek-V3's has 8.5 MB)."""
VALUES = 4_000_000
"""Values of the largest document that is parsed; DeepSeek-V3's 91,991 tensors make headers of a tenth of it."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_bytes(file: Path, most: int, remedy: str) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        BestiaryError: it is absent, longer, unreadable, or no regular file (a pipe or device would never end).
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BestiaryError(f"{file}: this is no regular file. {remedy}")
        if status.st_size > most:
            raise BestiaryError(f"{file}: it has {status.st_size:,} bytes, and such a file has at most {most:,}. {remedy}")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise BestiaryError(f"{file}: this file cannot be read: {getattr(error, 'strerror', None) or error}. {remedy}") from error


def read_object(file: Path, *, most: int = CONFIG, remedy: str = "Fetch or write the file again.") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BestiaryError: it cannot be read, or `parse_object` refuses it.
    """
    try:
        return parse_object(read_bytes(file, most, remedy))
    except ValueError as error:
        raise BestiaryError(f"{file}: this is not valid JSON: {error}. {remedy}") from error


def parse_object(text: bytes) -> dict[str, Any]:
    """The object that a JSON document in UTF-8 holds.

    Raises:
        ValueError: it is no JSON object, has a key twice, a number that is not finite, or too many or too deeply nested values.
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") > VALUES:
        raise ValueError(f"it holds more than {VALUES:,} values")
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    except ValueError as error:
        raise ValueError(str(error)[:200]) from error
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {type(data).__name__}")
    if deeper_than(data, DEEPEST):
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if _SURROGATE.search(text):
        json.dumps(data, ensure_ascii=False).encode()
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number in JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number
