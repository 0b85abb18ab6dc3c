"""Triton: causal attention of MLA in expanded form, and its gradients, without ever storing a matrix of scores (FlashAttention-2).

Tensors lie as the projections make them: `q` `[B, S, H, nope + rope]`, `kv` `[B, T, H, nope + value]` with every head's key before its
value, and the rotary key `k_pe` `[B, T, rope]` that all heads share. The two parts of a key are multiplied apart, so that 128 + 64
columns are not padded to 256. Scores, softmax and sums are fp32; exponentials are to the base 2.

A query sees the keys up to its own, the last query all T, and with `segments` `[B, S]` only those of its own document. Tiles that
every query of a program sees whole come first and need no mask.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from .tiles import padded

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tile(base, start, stride, limit, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows from `start` on, `[ROWS, padded width]`; zeros beyond `limit` rows and `WIDTH` columns."""
    row, column = tl.arange(0, ROWS), tl.arange(0, padded(WIDTH))
    inside = (start + row[:, None] < limit) & (column[None, :] < WIDTH)
    start = start + tl.zeros((), tl.int64)
    return tl.load(base + start * stride + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def put(base, start, stride, limit, values, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Stores what `tile` would load."""
    row, column = tl.arange(0, ROWS), tl.arange(0, padded(WIDTH))
    inside = (start + row[:, None] < limit) & (column[None, :] < WIDTH)
    start = start + tl.zeros((), tl.int64)
    tl.store(base + start * stride + row[:, None] * stride + column[None, :], values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def product_of(a, a_pe, b, b_pe):
    """`a b^T` of rows that have two parts."""
    return tl.dot(a_pe, tl.trans(b_pe), tl.dot(a, tl.trans(b), input_precision="ieee"), input_precision="ieee")


@triton.jit
def ends(rows, columns, first, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SEGMENTS: tl.constexpr):
    """For `BLOCK_M` queries from `first` on: the end of the tiles of keys that all of them see whole, and of those that any sees."""
    past = columns - rows
    return 0 if SEGMENTS else (past + first + 1) // BLOCK_N * BLOCK_N, tl.minimum(past + first + BLOCK_M, columns)


@triton.jit
def seen(segments, row, column, rows, columns, SEGMENTS: tl.constexpr):
    """Where queries `row` may look among keys `column`, which are as many positions behind as there are more of them."""
    visible = column <= row + (columns - rows)
    if SEGMENTS:
        own = tl.load(segments + row, mask=row < rows, other=-1)
        visible &= own == tl.load(segments + column, mask=column < columns, other=-1)
    return visible


@triton.jit
def forward_kernel(
    q,
    kv,
    k_pe,
    segments,
    out,
    lse,
    rows,
    columns,
    scale,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: `BLOCK_M` queries of one head; `out` `[B, S, H, value]` and fp32 `lse` `[B, H, S]`."""
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    batch, head = pair // HEADS, pair % HEADS
    q += (batch * rows * HEADS + head) * (NOPE + ROPE)
    kv += (batch * columns * HEADS + head) * (NOPE + VALUE)
    k_pe += batch * columns * ROPE
    a = tile(q, first, HEADS * (NOPE + ROPE), rows, BLOCK_M, NOPE)
    a_pe = tile(q + NOPE, first, HEADS * (NOPE + ROPE), rows, BLOCK_M, ROPE)
    row = first + tl.arange(0, BLOCK_M)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    y = tl.zeros((BLOCK_M, padded(VALUE)), tl.float32)
    whole, end = ends(rows, columns, first, BLOCK_M, BLOCK_N, SEGMENTS)
    for masked in tl.static_range(2):
        for start in range(whole if masked else 0, end if masked else whole, BLOCK_N):
            b = tile(kv, start, HEADS * (NOPE + VALUE), columns, BLOCK_N, NOPE)
            b_pe = tile(k_pe, start, ROPE, columns, BLOCK_N, ROPE)
            score = product_of(a, a_pe, b, b_pe) * (scale * LOG2_E)
            if masked:
                column = start + tl.arange(0, BLOCK_N)[None, :]
                visible = seen(segments + batch * rows, row[:, None], column, rows, columns, SEGMENTS)
                score = tl.where(visible, score, float("-inf"))
            higher = tl.maximum(peak, tl.max(score, axis=1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            share, old = tl.exp2(score - shift[:, None]), tl.exp2(peak - shift)
            total = total * old + tl.sum(share, axis=1)
            v = tile(kv + NOPE, start, HEADS * (NOPE + VALUE), columns, BLOCK_N, VALUE)
            y = tl.dot(share.to(v.dtype), v, y * old[:, None], input_precision="ieee")
            peak = higher
    put(out + (batch * rows * HEADS + head) * VALUE, first, HEADS * VALUE, rows, y / total[:, None], BLOCK_M, VALUE)
    tl.store(lse + pair * rows + row, (peak + tl.log2(total)) * LN_2, mask=row < rows)


@triton.jit
def query_gradient_kernel(
    q,
    kv,
    k_pe,
    segments,
    out,
    out_grad,
    lse,
    product,
    q_grad,
    rows,
    columns,
    scale,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradient of `BLOCK_M` queries of one head, and `product` `[B, H, S]`, of outputs and their gradients."""
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    batch, head = pair // HEADS, pair % HEADS
    at, at_out = (batch * rows * HEADS + head) * (NOPE + ROPE), (batch * rows * HEADS + head) * VALUE
    kv += (batch * columns * HEADS + head) * (NOPE + VALUE)
    k_pe += batch * columns * ROPE
    a = tile(q + at, first, HEADS * (NOPE + ROPE), rows, BLOCK_M, NOPE)
    a_pe = tile(q + at + NOPE, first, HEADS * (NOPE + ROPE), rows, BLOCK_M, ROPE)
    dy = tile(out_grad + at_out, first, HEADS * VALUE, rows, BLOCK_M, VALUE)
    y = tile(out + at_out, first, HEADS * VALUE, rows, BLOCK_M, VALUE)
    row = first + tl.arange(0, BLOCK_M)
    dot = tl.sum(y.to(tl.float32) * dy.to(tl.float32), axis=1)
    tl.store(product + pair * rows + row, dot, mask=row < rows)
    level = tl.load(lse + pair * rows + row, mask=row < rows, other=float("inf")) * LOG2_E
    da, da_pe = tl.zeros((BLOCK_M, padded(NOPE)), tl.float32), tl.zeros((BLOCK_M, padded(ROPE)), tl.float32)
    whole, end = ends(rows, columns, first, BLOCK_M, BLOCK_N, SEGMENTS)
    for masked in tl.static_range(2):
        for start in range(whole if masked else 0, end if masked else whole, BLOCK_N):
            b = tile(kv, start, HEADS * (NOPE + VALUE), columns, BLOCK_N, NOPE)
            b_pe = tile(k_pe, start, ROPE, columns, BLOCK_N, ROPE)
            v = tile(kv + NOPE, start, HEADS * (NOPE + VALUE), columns, BLOCK_N, VALUE)
            score = product_of(a, a_pe, b, b_pe) * (scale * LOG2_E)
            share = tl.exp2(score - level[:, None])
            if masked:
                column = start + tl.arange(0, BLOCK_N)[None, :]
                visible = seen(segments + batch * rows, row[:, None], column, rows, columns, SEGMENTS)
                share = tl.where(visible, share, 0.0)
            slope = (share * (tl.dot(dy, tl.trans(v), input_precision="ieee") - dot[:, None])).to(b.dtype)
            da = tl.dot(slope, b, da, input_precision="ieee")
            da_pe = tl.dot(slope, b_pe, da_pe, input_precision="ieee")
    put(q_grad + at, first, HEADS * (NOPE + ROPE), rows, da * scale, BLOCK_M, NOPE)
    put(q_grad + at + NOPE, first, HEADS * (NOPE + ROPE), rows, da_pe * scale, BLOCK_M, ROPE)


@triton.jit
def key_gradient_kernel(
    q,
    kv,
    k_pe,
    segments,
    out_grad,
    lse,
    product,
    kv_grad,
    k_pe_grad,
    rows,
    columns,
    scale,
    HEADS: tl.constexpr,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the gradients of `BLOCK_N` keys and values of one head; that of `k_pe` by heads, `[B, T, H, rope]`.

    Scores stand transposed here, keys by queries. Queries beyond the last have no share: their log-sum-exp is infinite.
    """
    blocks = tl.cdiv(columns, BLOCK_N)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK_N
    batch, head = pair // HEADS, pair % HEADS
    at = (batch * columns * HEADS + head) * (NOPE + VALUE)
    q += (batch * rows * HEADS + head) * (NOPE + ROPE)
    out_grad += (batch * rows * HEADS + head) * VALUE
    b = tile(kv + at, first, HEADS * (NOPE + VALUE), columns, BLOCK_N, NOPE)
    b_pe = tile(k_pe + batch * columns * ROPE, first, ROPE, columns, BLOCK_N, ROPE)
    v = tile(kv + at + NOPE, first, HEADS * (NOPE + VALUE), columns, BLOCK_N, VALUE)
    column = first + tl.arange(0, BLOCK_N)
    db, db_pe = tl.zeros((BLOCK_N, padded(NOPE)), tl.float32), tl.zeros((BLOCK_N, padded(ROPE)), tl.float32)
    dv = tl.zeros((BLOCK_N, padded(VALUE)), tl.float32)
    begin = tl.maximum(first - (columns - rows), 0) // BLOCK_M * BLOCK_M
    whole = rows if SEGMENTS else tl.cdiv(tl.maximum(first + BLOCK_N - 1 - (columns - rows), 0), BLOCK_M) * BLOCK_M
    for masked in tl.static_range(2):
        for start in range(begin if masked else whole, tl.minimum(whole, rows) if masked else rows, BLOCK_M):
            row = start + tl.arange(0, BLOCK_M)
            a = tile(q, start, HEADS * (NOPE + ROPE), rows, BLOCK_M, NOPE)
            a_pe = tile(q + NOPE, start, HEADS * (NOPE + ROPE), rows, BLOCK_M, ROPE)
            dy = tile(out_grad, start, HEADS * VALUE, rows, BLOCK_M, VALUE)
            level = tl.load(lse + pair * rows + row, mask=row < rows, other=float("inf")) * LOG2_E
            dot = tl.load(product + pair * rows + row, mask=row < rows, other=0.0)
            score = product_of(b, b_pe, a, a_pe) * (scale * LOG2_E)
            share = tl.exp2(score - level[None, :])
            if masked:
                visible = seen(segments + batch * rows, row[None, :], column[:, None], rows, columns, SEGMENTS)
                share = tl.where(visible, share, 0.0)
            dv = tl.dot(share.to(dy.dtype), dy, dv, input_precision="ieee")
            slope = (share * (tl.dot(v, tl.trans(dy), input_precision="ieee") - dot[None, :])).to(a.dtype)
            db = tl.dot(slope, a, db, input_precision="ieee")
            db_pe = tl.dot(slope, a_pe, db_pe, input_precision="ieee")
    put(kv_grad + at, first, HEADS * (NOPE + VALUE), columns, db * scale, BLOCK_N, NOPE)
    put(kv_grad + at + NOPE, first, HEADS * (NOPE + VALUE), columns, dv, BLOCK_N, VALUE)
    put(k_pe_grad + (batch * columns * HEADS + head) * ROPE, first, HEADS * ROPE, columns, db_pe * scale, BLOCK_N, ROPE)
