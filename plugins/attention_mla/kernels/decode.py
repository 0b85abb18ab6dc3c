"""Triton: absorbed attention of MLA on its cache, for one new position of every sequence (FlashMLA's problem, flash-decoding's answer).

All heads share one key, the latent and then the rotary key, and one value, the latent: a tile of the cache is read once for both.
The cache is either pages of `PAGE` positions `[pages, PAGE, latent + rope]`, found by a table, or one buffer `[sequences, capacity,
latent + rope]`.

The positions of a sequence are divided among `splits` programs, each of which writes an output that is right for its positions and
the logarithm of the sum of its exponentials; the second kernel weighs these outputs by their sums. Lengths differ freely; nothing is
read beyond them, and a sequence of length 0 has the output 0 and the log-sum-exp of minus infinity.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from .prefill import LN_2, LOG2_E, product_of, put, tile


@triton.jit
def attend_kernel(
    q,
    cache,
    table,
    lengths,
    out,
    lse,
    splits,
    capacity,
    queries,
    scale,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: `BLOCK_H` heads of one row of `q` `[R, H, latent + rope]` on its share of the first `lengths[row]` positions.

    Rows are sequences, or `queries` rows for each sequence. `capacity` is the number of columns of `table` `[sequences, pages]`, or,
    with a `PAGE` of 0, of positions in a sequence's buffer. `out` is `[R, splits, H, latent]` and `lse` `[R, splits, H]`.
    """
    row, split = (tl.program_id(0) // splits).to(tl.int64), tl.program_id(0) % splits
    first, sequence = tl.program_id(1) * BLOCK_H, row // queries
    length = tl.load(lengths + row).to(tl.int32)
    a = tile(q + row * HEADS * (LATENT + ROPE), first, LATENT + ROPE, HEADS, BLOCK_H, LATENT)
    a_pe = tile(q + row * HEADS * (LATENT + ROPE) + LATENT, first, LATENT + ROPE, HEADS, BLOCK_H, ROPE)
    peak = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    y = tl.zeros((BLOCK_H, a.shape[1]), tl.float32)
    share_of_split = tl.cdiv(tl.cdiv(length, splits), BLOCK_N) * BLOCK_N
    end = tl.minimum(length, (split + 1) * share_of_split)
    for start in range(split * share_of_split, end, BLOCK_N):
        if PAGE:
            page = tl.load(table + sequence * capacity + start // PAGE).to(tl.int64)
            base = cache + (page * PAGE + start % PAGE) * (LATENT + ROPE)
        else:
            base = cache + (sequence * capacity + start) * (LATENT + ROPE)
        b = tile(base, 0, LATENT + ROPE, end - start, BLOCK_N, LATENT)
        b_pe = tile(base + LATENT, 0, LATENT + ROPE, end - start, BLOCK_N, ROPE)
        score = product_of(a, a_pe, b, b_pe) * (scale * LOG2_E)
        score = tl.where(start + tl.arange(0, BLOCK_N)[None, :] < end, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        share, old = tl.exp2(score - higher[:, None]), tl.exp2(peak - higher)
        total = total * old + tl.sum(share, axis=1)
        y = tl.dot(share.to(b.dtype), b, y * old[:, None], input_precision="ieee")
        peak = higher
    part = (row * splits + split) * HEADS
    some = total != 0.0
    put(out + part * LATENT, first, LATENT, HEADS, y / tl.where(some, total, 1.0)[:, None], BLOCK_H, LATENT)
    level = tl.where(some, (peak + tl.log2(tl.where(some, total, 1.0))) * LN_2, float("-inf"))
    head = first + tl.arange(0, BLOCK_H)
    tl.store(lse + part + head, level, mask=head < HEADS)


@triton.jit
def combine_kernel(parts, part_lse, out, lse, heads, splits, LATENT: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """One program: one head of one row, from `parts` `[R, splits, H, latent]` to `out` `[R, H, latent]`; `SPLITS` are at least as many."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    levels = tl.load(part_lse + (row * splits + split) * heads + head, mask=split < splits, other=float("-inf"))
    peak = tl.max(levels, axis=0)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.sum(tl.exp2((levels - peak) * LOG2_E), axis=0)
    some = total != 0.0
    level = tl.where(some, peak + tl.log2(tl.where(some, total, 1.0)) * LN_2, float("-inf"))
    y = tl.zeros((WIDTH,), tl.float32)
    for one in range(splits):
        at = (row * splits + one) * heads + head
        weight = tl.exp2((tl.load(part_lse + at) - tl.where(some, level, 0.0)) * LOG2_E)
        y += weight * tl.load(parts + at * LATENT + column, mask=column < LATENT, other=0.0)
    tl.store(out + (row * heads + head) * LATENT + column, y.to(out.dtype.element_ty), mask=column < LATENT)
    tl.store(lse + row * heads + head, level)
