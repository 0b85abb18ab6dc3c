"""Triton: the weight gradients of all experts in one launch, `dy[e].T @ x[e]` in FP8 with factors per 128 tokens, fp32 results.

Both operands come from `tokens`: transposed, so that tokens are contiguous, and padded to whole tiles for each expert. Sums are
promoted after every tile, as in `product`.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..quantize import Quantised
from .configurations import configuration
from .tiles import TILE, described, descriptors_fit, program_of
from .tokens import Tiles


@triton.jit
def weight_gradient_kernel(
    a,
    a_scale,
    b,
    b_scale,
    out,
    ends,
    n,
    k,
    padded,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: `BLOCK_M x BLOCK_N` results of one expert.

    `a` `[N, P]` and `b` `[K, P]` are codes, or descriptors of them, `a_scale` `[P / 128, N]` and `b_scale` `[P / 128, K]` their
    factors, `out` `[E, N, K]`; `ends` `[E + 1]` int32 are the tiles at which experts begin.
    """
    row, column = program_of(tl.cdiv(n, BLOCK_M), tl.cdiv(k, BLOCK_N), GROUP)
    expert = tl.program_id(1).to(tl.int64)
    first, end = tl.load(ends + expert), tl.load(ends + expert + 1)
    r, c = row.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M), column.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = first.to(tl.int64)
    place = start * TILE + tl.arange(0, TILE)
    left, right = r[:, None] * padded + place[None, :], c[None, :] * padded + place[:, None]
    left_factor, right_factor = a_scale + start * n + r, b_scale + start * k + c
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(first, end):
        if DESCRIPTORS:
            x, y = a.load([row * BLOCK_M, tile * TILE]), b.load([column * BLOCK_N, tile * TILE]).T
        else:
            x = tl.load(a + left, mask=r[:, None] < n, other=0.0)
            y = tl.load(b + right, mask=c[None, :] < k, other=0.0)
            left, right = left + TILE, right + TILE
        x_factor = tl.load(left_factor, mask=r < n, other=0.0)
        y_factor = tl.load(right_factor, mask=c < k, other=0.0)
        total += tl.dot(x, y) * x_factor[:, None] * y_factor[None, :]
        left_factor, right_factor = left_factor + n, right_factor + k
    at = out + expert * n * k + r[:, None] * k + c[None, :]
    tl.store(at, total, mask=(r[:, None] < n) & (c[None, :] < k))


def weight_gradient(dy: Quantised, x: Quantised, tiles: Tiles) -> Tensor:
    """`[N, P]` and `[K, P]`, both from `tokens.along_tokens`, to `[E, N, K]` fp32; experts without rows get zeros."""
    (n, padded), k, experts = dy.codes.shape, x.codes.shape[0], len(tiles.ends) - 1
    out = torch.empty(experts, n, k, dtype=torch.float32, device=dy.codes.device)
    if not out.numel():
        return out
    how, (left, right) = configuration("weight_gradient"), (dy.codes, x.codes)
    if how.pop("DESCRIPTORS") and padded and descriptors_fit(left, right):
        left, right = described(left, how["BLOCK_M"]), described(right, how["BLOCK_N"])
    weight_gradient_kernel[(triton.cdiv(n, how["BLOCK_M"]) * triton.cdiv(k, how["BLOCK_N"]), experts)](
        left,
        dy.scale.T,
        right,
        x.scale.T,
        out,
        tiles.ends,
        n,
        k,
        padded,
        DESCRIPTORS=isinstance(left, TensorDescriptor),
        TILE=TILE,
        enable_fp_fusion=True,
        **how,
    )
    return out
