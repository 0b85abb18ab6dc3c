"""Triton: numbers of codes and factors, `code * factor` in fp32, rounded once; as `Quantised.values`."""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize import Quantised
from .configurations import configuration


@triton.jit
def dequantise_kernel(
    codes,
    scale,
    out,
    rows,
    columns,
    scale_rows,
    scale_columns,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: `ROWS x COLUMNS` numbers of a matrix; tiles have `HEIGHT` rows and `WIDTH` columns."""
    matrix = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    at = matrix * rows * columns + r[:, None] * columns + c[None, :]
    of = scale + matrix * scale_rows * scale_columns + (r[:, None] // HEIGHT) * scale_columns + c[None, :] // WIDTH
    values = tl.load(codes + at, mask=inside, other=0.0).to(tl.float32) * tl.load(of, mask=inside, other=0.0)
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def dequantise(q: Quantised, dtype: torch.dtype) -> Tensor:
    """`[..., R, C]` in `dtype`, of contiguous codes."""
    rows, columns = q.codes.shape[-2:]
    out = torch.empty_like(q.codes, dtype=dtype)
    if not out.numel():
        return out
    how = configuration("dequantise")
    grid = (triton.cdiv(rows, how["ROWS"]), triton.cdiv(columns, how["COLUMNS"]), out.numel() // (rows * columns))
    scale = q.scale.contiguous()
    dequantise_kernel[grid](q.codes, scale, out, rows, columns, *scale.shape[-2:], HEIGHT=q.tile[0], WIDTH=q.tile[1], **how)
    return out
