"""Triton: codes and factors of matrices, for tiles of 1x128, 128x1 or 128x128; bit by bit as `quantize.quantise`.

All experts of a stack are one launch. The transposed codes may be written at once, so that the product that reads the matrix
transposed finds its columns contiguous, as Hopper's tensor cores need them.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize import Quantised, Rule
from .configurations import configuration
from .tiles import TILE, to_codes


@triton.jit
def quantise_kernel(
    x,
    codes,
    turned,
    scale,
    rows,
    columns,
    scale_rows,
    scale_columns,
    floor,
    LARGEST: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    TURNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AXIS: tl.constexpr,
):
    """One program: `ROWS x COLUMNS` numbers of a matrix, whole tiles of which lie along `AXIS`, or make it up if that is None."""
    matrix = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    start, at = matrix * rows * columns, r[:, None] * columns + c[None, :]
    values = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    scaled, factor = to_codes(values, floor, LARGEST, POWER_OF_TWO, AXIS)
    found = scaled.to(codes.dtype.element_ty)
    tl.store(codes + start + at, found, mask=inside)
    if TURNED:
        tl.store(turned + start + c[None, :] * rows + r[:, None], found, mask=inside)
    to = scale + matrix * scale_rows * scale_columns
    if AXIS == 1:
        tl.store(to + r[:, None] * scale_columns + tl.program_id(1), factor, mask=r[:, None] < rows)
    elif AXIS == 0:
        tl.store(to + tl.program_id(0).to(tl.int64) * scale_columns + c[None, :], factor, mask=c[None, :] < columns)
    else:
        one = tl.zeros((1, 1), tl.int64)
        tl.store(to + tl.program_id(0).to(tl.int64) * scale_columns + tl.program_id(1) + one, factor)


def program(tile: tuple[int, int]) -> dict[str, int | None]:
    """Rows and columns that one program takes, the axis of its tiles, and its warps."""
    axis = None if tile == (TILE, TILE) else int(tile[0] == 1)
    how = configuration("quantise_blocks" if axis is None else "quantise")
    few = how.pop("ROWS")
    return {"ROWS": few if axis == 1 else TILE, "COLUMNS": few if axis == 0 else TILE, "AXIS": axis, **how}


def quantise(x: Tensor, tile: tuple[int, int], rule: Rule, *, turned: bool = False) -> Quantised:
    """Contiguous matrices `[..., R, C]`, of which there are numbers."""
    rows, columns = x.shape[-2:]
    matrices = x.numel() // (rows * columns)
    scale = x.new_empty(*x.shape[:-2], triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1]), dtype=torch.float32)
    codes = torch.empty_like(x, dtype=rule.dtype)
    other = x.new_empty(*x.shape[:-2], columns, rows, dtype=rule.dtype) if turned else codes
    how = program(tile)
    grid = (triton.cdiv(rows, how["ROWS"]), triton.cdiv(columns, how["COLUMNS"]), matrices)
    quantise_kernel[grid](
        x,
        codes,
        other,
        scale,
        rows,
        columns,
        *scale.shape[-2:],
        rule.floor,
        LARGEST=torch.finfo(rule.dtype).max,
        POWER_OF_TWO=rule.power_of_two,
        TURNED=turned,
        **how,
    )
    return Quantised(codes, scale, tile, other if turned else None)
