"""The header of a safetensors file: which tensors it holds, and where. Nothing in it is believed unchecked.

A file is eight bytes, the length n of the header; n bytes of JSON; then the data. Offsets in the header count from the
start of the data, and tensors cover it without gaps.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BestiaryError
from .dtypes import SIZES
from .safe_json import parse_object

LONGEST = 100_000_000
"""Bytes of the longest header that safetensors itself accepts."""

DIMENSIONS = 64
"""Most dimensions that a tensor of torch can have."""

AGAIN = "The file is damaged or incomplete: fetch it again."


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""
    nbytes: int


def read_header(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        BestiaryError: the file is truncated, or its header is not what the format prescribes.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise BestiaryError(f"{file}: this is no regular file. {AGAIN}")
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(LONGEST, size - 8):
                raise BestiaryError(f"{file}: a header of {length:,} bytes does not fit a file of {size:,}. {AGAIN}")
            text = stream.read(length)
    except OSError as error:
        raise BestiaryError(f"{file}: this file cannot be read: {error.strerror}. Check that it exists and may be read.") from error
    return parse_header(file, text, size)


def parse_header(file: Path, text: bytes, size: int) -> list[Stored]:
    """The tensors of a header of `text`, in a file of `size` bytes that need not be here.

    Raises:
        BestiaryError: as `read_header`.
    """
    length = len(text)
    table = _parse(file, text)
    notes = table.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise BestiaryError(f"{file}: `__metadata__` in its header holds something else than texts. {AGAIN}")
    tensors = [_tensor(file, name, entry, 8 + length) for name, entry in table.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_cover(file, tensors, 8 + length, size)
    return tensors


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> tuple[bytes, list[int]]:
    """The beginning of a file with tensors one after the other.

    Args:
        tensors: name, dtype, shape and bytes of each.

    Returns:
        Everything before the data, a multiple of eight bytes, and where in the file each tensor begins.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, offset = [], 0
    for name, dtype, shape, nbytes in tensors:
        begins.append(offset)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [8 + len(text) + begin for begin in begins]


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise BestiaryError(f"{file}: its header is no JSON: {error}. {AGAIN}") from error


def _tensor(file: Path, name: str, entry: Any, start: int) -> Stored:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if dtype in SIZES:
            counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
            if counts and len(shape) <= DIMENSIONS and begin >= 0 and end - begin == math.prod(shape) * SIZES[dtype]:
                return Stored(file, name, dtype, tuple(shape), start + begin, end - begin)
    raise BestiaryError(f"{file}: tensor {name}: dtype, shape and offsets do not fit together: {reprlib.repr(entry)}. {AGAIN}")


def _check_cover(file: Path, tensors: list[Stored], start: int, size: int) -> None:
    reached = start
    for tensor in tensors:
        if tensor.offset != reached:
            what = "overlaps the one before it" if tensor.offset < reached else "leaves a gap before it"
            raise BestiaryError(f"{file}: tensor {tensor.name} {what}. {AGAIN}")
        reached += tensor.nbytes
    if reached != size:
        what = f"ends at byte {size:,}, its tensors at {reached:,}"
        raise BestiaryError(f"{file}: the file {what}. {AGAIN}")
