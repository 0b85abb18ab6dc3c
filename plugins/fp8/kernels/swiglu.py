"""Triton: SwiGLU before an FP8 layer, `silu(gate) * up * weight` as codes in 1x128 tiles, and its gradients from codes of its inputs.

One pass reads gate and up and writes codes of the result and of both inputs; the result itself is written if asked for. The backward pass
decodes the inputs, computes SwiGLU again and writes three gradients. Numbers are rounded where `swiglu.Gated` rounds them: after `silu`
and after every product.
"""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize import Quantised, Rule
from ..swiglu import Gated, Kept
from .configurations import configuration
from .tiles import TILE, numbers, to_codes


@triton.jit
def rounded(x, like):
    """`x` as numbers of the type that `like` points to, in fp32."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def sigmoid(x):
    """`1 / (1 + exp(-x))`"""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + tl.exp(-x))


@triton.jit
def store_codes(values, codes, scale, at, factor_at, inside, valid, floor, LARGEST: tl.constexpr, POWER_OF_TWO: tl.constexpr):
    """Writes one tile of each row."""
    scaled, factor = to_codes(values, floor, LARGEST, POWER_OF_TWO, 1)
    tl.store(codes + at, scaled.to(codes.dtype.element_ty), mask=inside)
    tl.store(scale + factor_at, factor, mask=valid)


@triton.jit
def swiglu_kernel(
    gate,
    up,
    weights,
    codes,
    scale,
    hidden,
    gate_codes,
    gate_scale,
    up_codes,
    up_scale,
    rows,
    width,
    stride,
    factors,
    kept_factors,
    floor,
    WEIGHTED: tl.constexpr,
    HIDDEN: tl.constexpr,
    KEEP: tl.constexpr,
    LARGEST: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: a tile of each of `ROWS` rows.

    Rows of gate and up, and of their codes, lie `stride` apart; rows of factors `factors`, and of kept ones `kept_factors`.
    """
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    c = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    valid = r[:, None] < rows
    inside = valid & (c[None, :] < width)
    at, to = r[:, None] * stride + c[None, :], r[:, None] * width + c[None, :]
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    y = rounded(rounded(tl.div_rn(g, 1.0 + tl.exp(-g)), gate) * u, gate)
    if WEIGHTED:
        y = rounded(y * tl.load(weights + r[:, None], mask=valid, other=0.0).to(tl.float32), gate)
    if HIDDEN:
        tl.store(hidden + to, y.to(hidden.dtype.element_ty), mask=inside)
    store_codes(y, codes, scale, to, r[:, None] * factors + tile, inside, valid, floor, LARGEST, POWER_OF_TWO)
    if KEEP:
        kept_at = r[:, None] * kept_factors + tile
        store_codes(g, gate_codes, gate_scale, at, kept_at, inside, valid, floor, LARGEST, POWER_OF_TWO)
        store_codes(u, up_codes, up_scale, at, kept_at, inside, valid, floor, LARGEST, POWER_OF_TWO)


@triton.jit
def gradient_kernel(
    grad,
    gate,
    up,
    gate_scale,
    up_scale,
    weights,
    to_gate,
    to_up,
    to_weights,
    rows,
    width,
    stride,
    kept_factors,
    kept_width,
    shift,
    WEIGHTED: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: all of `ROWS` rows.

    Rows of gate, up and their gradients lie `stride` apart. `kept_width` columns share a factor, of which there are `kept_factors` in
    a row; `up` begins at column `shift` of its matrix.
    """
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = r[:, None] < rows
    total = tl.zeros((ROWS, 1), tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + r[:, None], mask=valid, other=0.0).to(tl.float32)
    for tile in range(0, tl.cdiv(width, TILE)):
        c = tile * TILE + tl.arange(0, TILE)
        inside = valid & (c[None, :] < width)
        at = r[:, None] * stride + c[None, :]
        g, u = tl.load(gate + at, mask=inside, other=0.0), tl.load(up + at, mask=inside, other=0.0)
        if CODES:
            of = r[:, None] * kept_factors
            g = numbers(g, tl.load(gate_scale + of + c[None, :] // kept_width, mask=inside, other=0.0), to_gate.dtype.element_ty)
            u = numbers(u, tl.load(up_scale + of + (shift + c[None, :]) // kept_width, mask=inside, other=0.0), to_gate.dtype.element_ty)
        g, u = g.to(tl.float32), u.to(tl.float32)
        d = tl.load(grad + r[:, None] * width + c[None, :], mask=inside, other=0.0).to(tl.float32)
        silu, slope = rounded(tl.div_rn(g, 1.0 + tl.exp(-g)), to_gate), sigmoid(g)
        if WEIGHTED:
            total += tl.sum(rounded(d * rounded(silu * u, to_gate), to_gate), axis=1, keep_dims=True)
            d = rounded(d * weight, to_gate)
        tl.store(to_up + at, (d * silu).to(to_up.dtype.element_ty), mask=inside)
        d = rounded(d * u, to_gate) * slope * (1.0 + g * (1.0 - slope))
        tl.store(to_gate + at, d.to(to_gate.dtype.element_ty), mask=inside)
    if WEIGHTED:
        tl.store(to_weights + r[:, None], total.to(to_weights.dtype.element_ty), mask=valid)


def swiglu(x: Gated, rule: Rule, *, numbers: bool, codes: bool) -> tuple[Quantised, Tensor | None, tuple[Quantised, ...]]:
    """Codes `[M, I]` of matrices' SwiGLU; that itself, if `numbers`; and codes of the inputs, if `codes`: no tile may hold both."""
    inputs, width = tuple(t.contiguous() for t in x.inputs), x.width
    rows, columns, first = len(inputs[0]), triton.cdiv(width, TILE), inputs[0]
    made = _empty(first, rows, width, rule)
    kept = tuple(_empty(t, rows, t.shape[1], rule) for t in inputs) if codes else ()
    hidden = torch.empty(rows, width, dtype=first.dtype, device=first.device) if numbers else None
    weights = first if x.weights is None else x.weights.contiguous()
    gate, up = _halves(inputs, width)
    kept_gate, kept_up = _halves(tuple(q.codes for q in kept), width) if kept else (first, first)
    gate_scale, up_scale = _halves(tuple(q.scale for q in kept), columns) if kept else (first, first)
    how = configuration("swiglu")
    swiglu_kernel[(triton.cdiv(rows, how["ROWS"]), columns)](
        gate,
        up,
        weights,
        made.codes,
        made.scale,
        first if hidden is None else hidden,
        kept_gate,
        gate_scale,
        kept_up,
        up_scale,
        rows,
        width,
        first.shape[1],
        columns,
        kept[0].scale.shape[1] if kept else 0,
        rule.floor,
        WEIGHTED=x.weights is not None,
        HIDDEN=numbers,
        KEEP=codes,
        LARGEST=torch.finfo(rule.dtype).max,
        POWER_OF_TWO=rule.power_of_two,
        TILE=TILE,
        **how,
    )
    return made, hidden, kept


def gradients(before: Kept, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of routing weights (or None) and of each input, in the dtype of `grad` `[M, I]`."""
    kept, grad = before.inputs, grad.contiguous()
    coded = isinstance(kept[0], Quantised)
    parts = tuple((q.codes if isinstance(q, Quantised) else q).contiguous() for q in kept)
    factors = tuple(q.scale.contiguous() for q in kept if isinstance(q, Quantised)) or parts
    (rows, width), out = grad.shape, tuple(torch.empty_like(t, dtype=grad.dtype) for t in parts)
    weights = parts[0] if before.weights is None else before.weights.contiguous()
    to_weights = None if before.weights is None else torch.empty_like(weights)
    gradient_kernel[(triton.cdiv(rows, configuration("swiglu_gradient")["ROWS"]),)](
        grad,
        *_halves(parts, width),
        factors[0],
        factors[-1],
        weights,
        *_halves(out, width),
        weights if to_weights is None else to_weights,
        rows,
        width,
        parts[0].shape[1],
        factors[0].shape[1],
        kept[0].tile[1] if isinstance(kept[0], Quantised) else 1,
        width if len(parts) == 1 else 0,
        WEIGHTED=to_weights is not None,
        CODES=coded,
        TILE=TILE,
        **configuration("swiglu_gradient"),
    )
    return to_weights, *out


def _empty(like: Tensor, rows: int, columns: int, rule: Rule) -> Quantised:
    codes = like.new_empty(rows, columns, dtype=rule.dtype)
    return Quantised(codes, like.new_empty(rows, triton.cdiv(columns, TILE), dtype=torch.float32), (1, TILE))


def _halves(parts: tuple[Tensor, ...], width: int) -> tuple[Tensor, Tensor]:
    """Of gate and of up: two matrices, or the two halves of one, whose rows then lie further apart."""
    return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], parts[0][:, width:])
