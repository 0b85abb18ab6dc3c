"""Triton: DeepSeek-V3's router after the gate's product, in one launch (technical report, equations 12 to 16 and section 2.1.2).

Experts are compared by integers that stand in the order of their floats. What may not be chosen, because it is padding, excluded with its
group or chosen already, is `NEVER`, below every float: K distinct experts come out whatever the scores and biases are. A score that is
not a number stands above all, as in torch's `topk`, so that its expert is chosen and the token's weights show it. Of equal scores
the first wins.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from .tiles import padded

NEVER = tl.constexpr(-(1 << 31))
FIRST = tl.constexpr((1 << 31) - 1)


@triton.jit
def order(x):
    """int32 in the order of the fp32 `x`; what is not a number comes last."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, FIRST, tl.where(bits < 0, bits ^ FIRST, bits))


@triton.jit
def value(key):
    """The float of an `order`."""
    return tl.where(key < 0, key ^ FIRST, key).to(tl.float32, bitcast=True)


@triton.jit
def first_best(key, column, axis: tl.constexpr):
    """The largest of `key` along an axis, and the first `column` that has it: int32, whose maximum over a warp is one instruction."""
    best = tl.max(key, axis=axis, keep_dims=True)
    return best, tl.min(tl.where(key == best, column, FIRST), axis=axis, keep_dims=True)


@triton.jit
def two_best(key):
    """The sum of the two largest values of each group, of orders `[T, G, S]`: `[T, G]`."""
    place = tl.arange(0, key.shape[2])[None, None, :]
    best, first = first_best(key, place, 2)
    second = tl.max(tl.where(place == first, NEVER, key), axis=2)
    return value(tl.reshape(best, (key.shape[0], key.shape[1]))) + value(second)


@triton.jit
def in_best_groups(key, GROUPS: tl.constexpr, KEPT: tl.constexpr):
    """Orders `[T, G, S]` with `NEVER` in all groups but the `KEPT` best, of `GROUPS` that are no padding."""
    group = tl.arange(0, key.shape[1])[None, :]
    rank = tl.where(group < GROUPS, order(two_best(key)), NEVER)
    kept = rank < NEVER
    for _ in tl.static_range(KEPT):
        _, first = first_best(rank, group, 1)
        kept |= group == first
        rank = tl.where(group == first, NEVER, rank)
    return tl.where(kept[:, :, None], key, NEVER)


@triton.jit
def route_kernel(
    logits,
    bias,
    weights,
    experts,
    scores,
    tokens,
    scale,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    NORMALISE: tl.constexpr,
    SCORES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program: `TOKENS` rows of `logits` `[T, E]` to fp32 `weights` and int64 `experts` `[T, K]`, and on request `scores` `[T, E]`.

    `bias` `[E]` decides with the scores which experts are chosen, and weighs nothing. Experts lie in `GROUPS` equal groups.
    """
    SIZE: tl.constexpr = COUNT // GROUPS
    G: tl.constexpr = padded(GROUPS)
    S: tl.constexpr = padded(SIZE)
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    group, place = tl.arange(0, G)[None, :, None], tl.arange(0, S)[None, None, :]
    real, expert = (group < GROUPS) & (place < SIZE), group * SIZE + place
    inside = real & (token < tokens)[:, None, None]
    at = token[:, None, None] * COUNT + expert
    score = tl.sigmoid(tl.load(logits + at, mask=inside, other=0.0).to(tl.float32))
    if SCORES:
        tl.store(scores + at, score, mask=inside)
    key = tl.where(real, order(score + tl.load(bias + expert, mask=real, other=0.0)), NEVER)
    if GROUPS > 1:
        key = in_best_groups(key, GROUPS, KEPT)
    key, bits = tl.reshape(key, (TOKENS, G * S)), tl.reshape(score.to(tl.int32, bitcast=True), (TOKENS, G * S))
    column, rank = tl.arange(0, G * S)[None, :], tl.arange(0, padded(K))[None, :]
    picked, total = tl.zeros((TOKENS, padded(K)), tl.float32), tl.zeros((TOKENS, 1), tl.float32)
    chosen = tl.zeros((TOKENS, padded(K)), tl.int32)
    for k in tl.static_range(K):
        _, first = first_best(key, column, 1)
        share = tl.sum(tl.where(column == first, bits, 0), axis=1, keep_dims=True).to(tl.float32, bitcast=True)
        picked, total, chosen = tl.where(rank == k, share, picked), total + share, tl.where(rank == k, first, chosen)
        key = tl.where(column == first, NEVER, key)
    if NORMALISE:
        picked = picked / (total + 1e-20)
    at, inside = token[:, None] * K + rank, (token < tokens)[:, None] & (rank < K)
    tl.store(experts + at, (chosen // S * SIZE + chosen % S).to(tl.int64), mask=inside)
    tl.store(weights + at, picked * scale, mask=inside)


@triton.jit
def route_gradient_kernel(
    scores,
    experts,
    weights_grad,
    scores_grad,
    logits_grad,
    tokens,
    scale,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    NORMALISE: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SCORES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program: the gradient of `TOKENS` rows of logits, from those of the weights, of the scores, or of both."""
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    column, some = tl.arange(0, padded(COUNT))[None, :], token < tokens
    at, inside = token[:, None] * COUNT + column, some[:, None] & (column < COUNT)
    slope = tl.zeros((TOKENS, padded(COUNT)), tl.float32)
    if SCORES:
        slope += tl.load(scores_grad + at, mask=inside, other=0.0)
    if WEIGHTS:
        total, product = tl.zeros((TOKENS,), tl.float32), tl.zeros((TOKENS,), tl.float32)
        for k in tl.static_range(K):
            expert = tl.load(experts + token * K + k, mask=some, other=0)
            share = tl.load(scores + token * COUNT + expert, mask=some, other=0.0)
            total += share
            product += share * tl.load(weights_grad + token * K + k, mask=some, other=0.0)
        total += 1e-20
        for k in tl.static_range(K):
            expert = tl.load(experts + token * K + k, mask=some, other=0)
            grad = tl.load(weights_grad + token * K + k, mask=some, other=0.0)
            if NORMALISE:
                grad = (grad - product / total) / total
            slope += tl.where(column == expert[:, None], (grad * scale)[:, None], 0.0)
    score = tl.load(scores + at, mask=inside, other=0.0)
    tl.store(logits_grad + at, slope * score * (1.0 - score), mask=inside)
