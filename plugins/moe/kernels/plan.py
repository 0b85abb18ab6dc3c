"""Triton: where the copies of tokens go, sorted by expert: what `dispatch._plan` computes by sorting, here by counting.

A copy is one of a token's K; copies are numbered from 0 to T K, and keep their order within an expert. Three launches: blocks of copies
count their experts, experts add up the blocks' counts, and blocks of copies place each copy behind those that come before it.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from .tiles import padded


@triton.jit
def count_kernel(chosen, before, copies, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """One program: how many of `BLOCK` copies go to each expert, from `chosen` `[T K]` to a row of `before` `[blocks, E]`."""
    copy, column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, padded(COUNT))
    expert = tl.load(chosen + copy, mask=copy < copies, other=0).to(tl.int32)
    counted = tl.histogram(expert, padded(COUNT), mask=copy < copies)
    tl.store(before + tl.program_id(0) * COUNT + column, counted, mask=column < COUNT)


@triton.jit
def add_kernel(before, counts, blocks, multiple, COUNT: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """One program: turns the counts of `BLOCK` experts into sums over all earlier blocks, and `counts` into rows, padding included."""
    expert, step = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STEP)
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, blocks, STEP):
        at = before + (first + step[:, None]) * COUNT + expert[None, :]
        inside = (first + step[:, None] < blocks) & (expert[None, :] < COUNT)
        own = tl.load(at, mask=inside, other=0)
        tl.store(at, total[None, :] + tl.cumsum(own, axis=0) - own, mask=inside)
        total += tl.sum(own, axis=0)
    tl.store(counts + expert, (tl.cdiv(total, multiple) * multiple).to(tl.int64), mask=expert < COUNT)


@triton.jit
def place_kernel(chosen, before, counts, place, source, copies, COUNT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the rows of `BLOCK` copies, to `place` `[T K]`, and there their tokens, to `source` `[R]`; both int64."""
    start, own = tl.program_id(0) * BLOCK, tl.arange(0, BLOCK)
    inside, column = start + own < copies, tl.arange(0, padded(COUNT))
    expert = tl.load(chosen + start + own, mask=inside, other=0).to(tl.int32)
    earlier = tl.load(chosen + start + own[:, None], mask=start + own[:, None] < copies, other=-1).to(tl.int32)
    row = tl.sum(((earlier == expert[None, :]) & (own[:, None] < own[None, :])).to(tl.int32), axis=0).to(tl.int64)
    row += tl.load(before + tl.program_id(0) * COUNT + expert, mask=inside, other=0)
    rows = tl.load(counts + column, mask=column < COUNT, other=0)
    row += tl.gather(tl.cumsum(rows, axis=0) - rows, expert, axis=0)
    tl.store(place + start + own, row, mask=inside)
    tl.store(source + row, ((start + own) // K).to(tl.int64), mask=inside)
