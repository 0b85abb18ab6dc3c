"""The kernels as functions that autograd knows, of tensors that were checked."""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from ....core.weight_gradients import WeightGradients, accumulate
from . import plan as planning
from . import product as products
from . import router, tiles
from . import rows as moving


@dataclass(frozen=True)
class Rule:
    """How experts are chosen; the options of DeepSeek-V3's router by the names of the kernel's constants."""

    K: int
    GROUPS: int
    KEPT: int
    NORMALISE: bool
    scale: float


class Route(torch.autograd.Function):
    """Logits `[T, E]` and bias `[E]` to weights and experts `[T, K]`, and on request scores `[T, E]`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bias: Tensor, rule: Rule, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, count = logits.shape
        constants = asdict(rule) | {"COUNT": count}
        how = tiles.route(tiles.padded(rule.GROUPS) * tiles.padded(count // rule.GROUPS))
        weights = logits.new_empty(tokens, rule.K, dtype=torch.float32)
        experts = logits.new_empty(tokens, rule.K, dtype=torch.int64)
        scores = logits.new_empty(tokens, count, dtype=torch.float32) if wanted else None
        if tokens:
            grid = (triton.cdiv(tokens, how["TOKENS"]),)
            into = (weights, experts, weights if scores is None else scores)
            router.route_kernel[grid](logits, bias, *into, tokens, SCORES=wanted, **constants, **how)
        ctx.rule, ctx.dtype = rule, logits.dtype
        ctx.save_for_backward(scores, experts)
        ctx.mark_non_differentiable(experts)
        ctx.set_materialize_grads(False)
        return weights, experts, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None, None]:
        (scores, experts), rule = ctx.saved_tensors, ctx.rule
        tokens, count = scores.shape
        of_weights, of_scores = (None if grad is None else grad.contiguous() for grad in (grads[0], grads[2]))
        logits_grad = torch.empty_like(scores, dtype=ctx.dtype)
        how = tiles.route(tiles.padded(count))
        if tokens:
            given = (scores if of_weights is None else of_weights, scores if of_scores is None else of_scores)
            constants = {"COUNT": count, "K": rule.K, "NORMALISE": rule.NORMALISE}
            asked = {"WEIGHTS": of_weights is not None, "SCORES": of_scores is not None}
            grid = (triton.cdiv(tokens, how["TOKENS"]),)
            router.route_gradient_kernel[grid](scores, experts, *given, logits_grad, tokens, rule.scale, **constants, **asked, **how)
        return logits_grad, None, None, None


def plan(chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Place `[T, K]`, source `[R]` and counts `[E]`, as `dispatch` defines them; waits for the GPU only if rows are padded."""
    copies, k = chosen.numel(), chosen.shape[1]
    how, adding = tiles.COPIES, tiles.EXPERTS
    blocks = triton.cdiv(copies, how["BLOCK"])
    before = chosen.new_empty(blocks, experts, dtype=torch.int32)
    place, counts = torch.empty_like(chosen), chosen.new_empty(experts)
    if blocks:
        planning.count_kernel[(blocks,)](chosen, before, copies, COUNT=experts, **how)
    planning.add_kernel[(triton.cdiv(experts, adding["BLOCK"]),)](before, counts, blocks, multiple, COUNT=experts, **adding)
    source = chosen.new_empty(copies) if multiple == 1 else chosen.new_zeros(int(counts.sum()))
    if blocks:
        planning.place_kernel[(blocks,)](chosen, before, counts, place, source, copies, COUNT=experts, K=k, **how)
    return place, source, counts


def padding_of(place: Tensor, rows: int) -> Tensor:
    """The `rows - T K` rows that hold no copy."""
    count = rows - place.numel()
    if not count:
        return place.new_empty(0)
    return place.new_ones(rows, dtype=torch.bool).index_fill(0, place.flatten(), False).nonzero_static(size=count).flatten()


def spread(x: Tensor, place: Tensor, rows: int, factors: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`[T, D]` to `[rows, D]`, and factors `[T, F]` with them: each token to its places, token 0 to padding."""
    (tokens, width), padding = x.shape, padding_of(place, rows)
    bits = x.view(torch.uint8) if x.element_size() == 1 else x
    out = bits.new_empty(rows, width)
    beside = None if factors is None else factors.new_empty(rows, factors.shape[1])
    how = tiles.columns(x.element_size())
    grid = (tokens + len(padding), triton.cdiv(width, how["BLOCK"]))
    if rows and width:
        pairs = (bits, factors if factors is not None else bits, out, beside if beside is not None else out)
        constants = {"K": place.shape[1], "FACTORS": 0 if factors is None else factors.shape[1]}
        moving.copy_kernel[grid](*pairs, place, padding, tokens, width, **constants, **how)
    return out.view(x.dtype), beside


def gather(rows: Tensor, place: Tensor, weights: Tensor | None = None) -> Tensor:
    """`[R, D]` to `[T, D]`: the sum of each token's rows, weighted by `[T, K]` if weights are given."""
    (tokens, k), width, how = place.shape, rows.shape[1], tiles.columns(rows.element_size())
    out = rows.new_empty(tokens, width)
    if out.numel():
        grid = (tokens, triton.cdiv(width, how["BLOCK"]))
        given = rows if weights is None else weights
        moving.sum_kernel[grid](rows, place, given, out, width, K=k, WEIGHTED=weights is not None, **how)
    return out


class Copy(torch.autograd.Function):
    """`x[source]`; the gradient of a token is the sum over its places, padding left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return spread(x, place, len(source))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return gather(grads[0].contiguous(), *ctx.saved_tensors), None, None


class Sum(torch.autograd.Function):
    """The sum over each token's places; the gradient of a row is its token's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor) -> Tensor:
        ctx.count = len(rows)
        ctx.save_for_backward(place)
        return gather(rows, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return spread(grads[0].contiguous(), *ctx.saved_tensors, ctx.count)[0], None


class WeightedSum(torch.autograd.Function):
    """The same with fp32 weights `[T, K]`; rows of padding have a gradient of 0."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, place, weights)
        return gather(rows, place, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        rows, place, weights = ctx.saved_tensors
        padded, how = len(rows) > place.numel(), tiles.columns(rows.element_size())
        rows_grad, weights_grad = rows.new_zeros(rows.shape) if padded else torch.empty_like(rows), torch.empty_like(weights)
        if place.numel():
            given = (grads[0].contiguous(), rows, place, weights, rows_grad, weights_grad)
            moving.sum_gradient_kernel[(place.numel(),)](*given, rows.shape[1], K=place.shape[1], **how)
        return rows_grad, None, weights_grad


def product(x: Tensor, weight: Tensor, counts: Tensor, *, transposed: bool) -> Tensor:
    """Rows `[R, K]` sorted by expert and `[E, N, K]`, or `[E, K, N]` if `transposed`, to `[R, N]`."""
    (rows, k), n, experts = x.shape, weight.shape[2 if transposed else 1], len(counts)
    out, how = x.new_empty(rows, n), (tiles.PRODUCT_FEW if rows <= tiles.FEW * experts else tiles.PRODUCT)[tiles.short(x.dtype)]
    blocks = rows // how["BLOCK_M"] + experts
    if out.numel():
        grid = (blocks * triton.cdiv(n, how["BLOCK_N"]),)
        products.product_kernel[grid](x, weight, out, counts, blocks, n, k, EXPERTS=experts, TRANSPOSED=transposed, **how)
    return out


def weight_gradient(grad: Tensor, x: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    """`grad[e]^T x[e]` of each expert, `[E, N, K]` in `dtype`, from `[R, N]` and `[R, K]`."""
    n, k, experts, how = grad.shape[1], x.shape[1], len(counts), tiles.WEIGHT_GRADIENT[tiles.short(x.dtype)]
    out = x.new_empty(experts, n, k, dtype=dtype)
    if out.numel():
        grid = (experts * triton.cdiv(n, how["BLOCK_M"]) * triton.cdiv(k, how["BLOCK_N"]),)
        products.weight_gradient_kernel[grid](grad, x, out, counts, n, k, EXPERTS=experts, **how)
    return out


class Grouped(torch.autograd.Function):
    """Row n of expert e: `x[n] @ weight[e].T`. The weight gradient has the dtype of `weight`; it goes to a store if there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: Tensor, store: WeightGradients | None) -> Tensor:
        matrices = weight.to(x.dtype).contiguous()
        ctx.store, ctx.parameter, ctx.dtype = store, None if store is None else weight, weight.dtype
        ctx.save_for_backward(x, counts, *([matrices] if store is None else []))
        return product(x, matrices, counts, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, counts, *kept), grad, store, parameter = ctx.saved_tensors, grads[0].contiguous(), ctx.store, ctx.parameter
        x_grad, dtype = None, ctx.dtype
        if ctx.needs_input_grad[0]:
            matrices = kept[0] if kept else parameter.to(x.dtype).contiguous()
            x_grad = product(grad, matrices, counts, transposed=True)
        if store is not None:
            if parameter.requires_grad:
                store.put(lambda: accumulate(parameter, weight_gradient(grad, x, counts, dtype)))
            return x_grad, None, None, None
        return x_grad, weight_gradient(grad, x, counts, dtype) if ctx.needs_input_grad[1] else None, None, None
