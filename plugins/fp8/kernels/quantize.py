"""Triton: codes and factors of a matrix, for tiles of 1x128, 128x1 or 128x128; bit by bit as `quantize.quantise`."""

# pyright: reportIndexIssue=false, reportCallIssue=false
from __future__ import annotations

import triton
import triton.language as tl

TILE = 128
ROWS = 32
"""Rows (or columns) of 1x128 (or 128x1) tiles that one program takes."""


@triton.jit
def quantise_kernel(
    x,
    codes,
    scale,
    rows,
    columns,
    scale_columns,
    floor,
    LARGEST: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """One program: `ROWS x COLUMNS` numbers, whole tiles of which lie along at least one side."""
    tl.static_assert(ROWS == TILE_ROWS or COLUMNS == TILE_COLUMNS)
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    at = r[:, None] * columns + c[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    magnitude = tl.abs(values)
    bad = ((values != values) | (magnitude == float("inf"))).to(tl.int32)
    if TILE_ROWS == 1:
        amax, spoilt = tl.max(magnitude, axis=1, keep_dims=True), tl.max(bad, axis=1, keep_dims=True)
    elif TILE_COLUMNS == 1:
        amax, spoilt = tl.max(magnitude, axis=0, keep_dims=True), tl.max(bad, axis=0, keep_dims=True)
    else:
        amax = tl.max(tl.max(magnitude, axis=1, keep_dims=True), axis=0, keep_dims=True)
        spoilt = tl.max(tl.max(bad, axis=1, keep_dims=True), axis=0, keep_dims=True)
    factor = tl.div_rn(tl.maximum(amax, floor), tl.full(amax.shape, LARGEST, tl.float32))
    if POWER_OF_TWO:
        bits = factor.to(tl.int32, bitcast=True)
        factor = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    factor = tl.where(spoilt > 0, float("nan"), factor)
    scaled = tl.div_rn(values, tl.broadcast_to(factor, values.shape))
    scaled = tl.where(spoilt > 0, float("nan"), tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST))
    tl.store(codes + at, scaled.to(codes.dtype.element_ty), mask=inside)
    if TILE_ROWS == 1:
        tl.store(scale + r[:, None] * scale_columns + tl.program_id(1), factor, mask=r[:, None] < rows)
    elif TILE_COLUMNS == 1:
        tl.store(scale + tl.program_id(0).to(tl.int64) * scale_columns + c[None, :], factor, mask=c[None, :] < columns)
    else:
        one = tl.zeros((1, 1), tl.int64)
        tl.store(scale + tl.program_id(0).to(tl.int64) * scale_columns + tl.program_id(1) + one, factor)


def shape_of_program(tile: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that one program takes."""
    return (ROWS if tile[0] == 1 else TILE, ROWS if tile[1] == 1 else TILE)
