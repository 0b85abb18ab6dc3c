"""The rows of new tensors, strip by strip, so that memory stays small whatever a tensor's size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...core.blocks import Block, decode_e4m3, quantise_blocks
from ...core.errors import BestiaryError, Problem
from ..dequantise import check_scales, spread_columns
from ..dtypes import FLOATS, FP8, SIZES
from ..header import Stored
from ..repository import pread
from .target import Made, Part, columns, height

STRIP = 8 << 20
"""Bytes of a strip in fp32, more only where a single row of blocks needs it."""


def strips(made: Made, stored_block: Block | None, block: Block, *, power_of_two: bool) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The rows of a new tensor.

    Args:
        made: which.
        stored_block: of a source in FP8.
        block: of a target in FP8.
        power_of_two: of its scales.

    Yields:
        First row; `[n, C]` of the rows in the new dtype; for FP8 that is computed, the scales of their blocks.

    Raises:
        BestiaryError: a file ends early, scales or numbers are not finite, or numbers do not fit the new format.
    """
    for part in made.parts:
        for first, count in _cuts(part, made, block):
            start = part.first + first - part.at
            if part.source.dtype == made.dtype and not made.quantised:
                yield first, _raw(part.source, start, count), None
                continue
            rows = _rows(part, start, count, stored_block)
            if not made.quantised:
                yield first, _cast(rows, made), None
                continue
            if not torch.isfinite(rows).all():
                raise BestiaryError(_bad(part.source, "it holds numbers that are not finite, and FP8 blocks cannot"))
            yield first, *quantise_blocks(rows, block, power_of_two=power_of_two)


def _cuts(part: Part, made: Made, block: Block) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each strip; where blocks are computed, whole rows of blocks of one matrix."""
    width = columns(part.source.shape)
    most = max(1, STRIP // (width * 4))
    step, rows = (max(1, most // block[0]) * block[0], height(made.shape)) if made.quantised else (most, part.rows)
    row, end = part.at, part.at + part.rows
    while row < end:
        inside = (row % rows) if made.quantised else 0
        count = min(step, end - row, rows - inside if made.quantised else end - row)
        yield row, count
        row += count


def _raw(source: Stored, start: int, count: int) -> Tensor:
    """Bytes of some rows, `[n, bytes]`."""
    size = columns(source.shape) * SIZES[source.dtype]
    data = bytearray(pread(source.file, source.offset + start * size, source.offset + (start + count) * size))
    return torch.frombuffer(data, dtype=torch.uint8).view(count, size)


def _rows(part: Part, start: int, count: int, block: Block | None) -> Tensor:
    """Some rows of a stored tensor as numbers: in their own dtype, or fp32 from FP8 blocks."""
    source = part.source
    raw = _raw(source, start, count)
    if source.dtype != FP8:
        return raw.view(getattr(torch, FLOATS[source.dtype]))
    assert part.scale is not None and block is not None
    scale = _scales(part.scale)
    rows, tall = height(source.shape), math.ceil(height(source.shape) / block[0])
    index = torch.arange(start, start + count)
    which = index // rows * tall + index % rows // block[0]
    return decode_e4m3(raw.view(torch.float8_e4m3fn)).mul_(spread_columns(scale[which], block, columns(source.shape)))


def _scales(scale: Stored) -> Tensor:
    """`[rows of blocks, columns of blocks]` fp32."""
    raw = _raw(scale, 0, math.prod(scale.shape[:-1]))
    found = raw.view(getattr(torch, FLOATS[scale.dtype])).float()
    check_scales(found, scale.name, str(scale.file))
    return found


def _cast(rows: Tensor, made: Made) -> Tensor:
    out = rows.to(getattr(torch, FLOATS[made.dtype]))
    if made.dtype == "F16" and bool((out.isinf() & ~rows.isinf()).any()):
        fact = f"it holds numbers up to {rows.abs().max().item():.6g}, and fp16 ends at 65504"
        raise BestiaryError(_bad(made.parts[0].source, fact, "Convert to bf16 instead."))
    return out


def _bad(source: Stored, fact: str, remedy: str = "`bestiary verify --values` lists all tensors with such numbers.") -> Problem:
    return Problem(f"{source.name}: {fact}.", str(source.file), remedy)
