"""Triton: codes in tiles along tokens, transposed, for weight gradients.

    numbers [M, C], or codes of them in tiles along channels   ->   codes [C, P] and factors [P / 128, C]

Tiles begin anew at each expert: its rows take whole tiles of P, the last of which zeros fill up, so that the product that reads
the codes needs no masks along tokens and finds them contiguous. The transposed tile is stored to transposed addresses; an FP8
tile itself is never transposed on the device, which Triton has got wrong before.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize import Quantised, Rule
from .configurations import configuration
from .tiles import TILE, numbers, to_codes


@triton.jit
def tokens_kernel(
    x,
    x_scale,
    codes,
    scale,
    tiles,
    columns,
    padded,
    x_scale_columns,
    x_scale_width,
    floor,
    DECODE: tl.constexpr,
    DTYPE: tl.constexpr,
    LARGEST: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: `TILE` tokens of `COLUMNS` channels. `tiles` `[P / 128, 2]` int32: first row of a tile, and end of its expert's rows.

    Codes are decoded to `DTYPE` first.
    """
    tile = tl.program_id(0).to(tl.int64)
    first, end = tl.load(tiles + 2 * tile).to(tl.int64), tl.load(tiles + 2 * tile + 1)
    place = tl.arange(0, TILE)
    r, c = first + place, tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r[:, None] < end) & (c[None, :] < columns)
    values = tl.load(x + r[:, None] * columns + c[None, :], mask=inside, other=0.0)
    if DECODE:
        factor = tl.load(x_scale + r[:, None] * x_scale_columns + c[None, :] // x_scale_width, mask=inside, other=0.0)
        values = numbers(values, factor, DTYPE)
    scaled, factor = to_codes(values.to(tl.float32), floor, LARGEST, POWER_OF_TWO, 0)
    to = codes + c[None, :] * padded + tile * TILE + place[:, None]
    tl.store(to, scaled.to(codes.dtype.element_ty), mask=c[None, :] < columns)
    tl.store(scale + tile * columns + c[None, :], factor, mask=c[None, :] < columns)


@dataclass(frozen=True)
class Tiles:
    """How the rows of experts lie in tiles."""

    rows: Tensor
    """`[P / 128, 2]` int32: first row of each tile, and the end of its expert's rows."""
    ends: Tensor
    """`[E + 1]` int32: the first tile of each expert, and the end of all."""
    count: int
    """`P / 128`"""


def tiles_of(sizes: list[int], device: torch.device) -> Tiles:
    """Tiles of experts with so many rows, sorted by expert."""
    rows, ends, start = [], [0], 0
    for size in sizes:
        rows += [(first, start + size) for first in range(start, start + size, TILE)]
        ends.append(len(rows))
        start += size
    table = torch.tensor([*(x for row in rows for x in row), *ends], dtype=torch.int32).to(device, non_blocking=True)
    return Tiles(table[: 2 * len(rows)], table[2 * len(rows) :], len(rows))


def along_tokens(source: Tensor | Quantised, tiles: Tiles, rule: Rule, dtype: torch.dtype) -> Quantised:
    """Codes `[C, P]` and factors `[C, P / 128]` of rows `[M, C]`; those that are codes are decoded to `dtype` first."""
    coded = isinstance(source, Quantised)
    x, x_scale = (source.codes.contiguous(), source.scale.contiguous()) if coded else (source.contiguous(), source)
    columns, padded = x.shape[1], tiles.count * TILE
    codes = x.new_empty(columns, padded, dtype=rule.dtype)
    scale = x.new_empty(tiles.count, columns, dtype=torch.float32)
    if codes.numel():
        how = configuration("tokens")
        tokens_kernel[(tiles.count, triton.cdiv(columns, how["COLUMNS"]))](
            x,
            x_scale,
            codes,
            scale,
            tiles.rows,
            columns,
            padded,
            x_scale.shape[1],
            source.tile[1] if coded else 1,
            rule.floor,
            DECODE=coded,
            DTYPE=tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
            LARGEST=torch.finfo(rule.dtype).max,
            POWER_OF_TWO=rule.power_of_two,
            TILE=TILE,
            **how,
        )
    return Quantised(codes, scale.T, (1, TILE))
