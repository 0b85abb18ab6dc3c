"""Launches the kernels, on an NVIDIA GPU or, where tests ask for it, in Triton's interpreter."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ....core.errors import BestiaryError, Problem
from ....core.weight_gradients import WeightGradients
from ..hookspecs import Routing
from ..options import SigmoidGroupOptions
from . import functions
from .functions import Rule

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = (torch.bfloat16, torch.float16, torch.float32)
CODES = (torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)


class Kernels:
    """The mixture of experts by kernels; of meta tensors they give the shapes.

    Every method raises `BestiaryError` where tensors are not on a GPU, or of types that its kernels do not know, and `ValueError`
    where shapes do not fit.
    """

    def route(self, logits: Tensor, bias: Tensor, k: int, options: SigmoidGroupOptions, *, scores: bool = False) -> Routing:
        """DeepSeek-V3's router after the gate's product; see `routers.SigmoidGroup`. Of equal scores the first is chosen.

        Args:
            logits: `[T, E]`.
            bias: fp32 `[E]`, added to the scores for the choice.
            k: experts of a token.
            options: the router's.
            scores: whether they are wanted in the result; a backward pass needs them and makes them anyway.
        """
        check(logits)
        tokens, count = logits.shape
        if bias.shape != (count,) or bias.dtype != torch.float32 or count % options.n_group:
            raise ValueError(
                f"logits {[*logits.shape]} do not fit an fp32 bias [E] in {options.n_group} groups: {[*bias.shape]} {bias.dtype}"
            )
        if logits.is_meta:
            weights = logits.new_empty(tokens, k, dtype=torch.float32)
            return Routing(weights, torch.empty_like(weights, dtype=torch.int64), logits.to(torch.float32))
        rule = Rule(k, options.n_group, options.topk_group, options.norm_topk_prob, options.routed_scaling_factor)
        wanted = scores or (torch.is_grad_enabled() and logits.requires_grad)
        return Routing(*functions.Route.apply(logits.contiguous(), bias, rule, wanted))  # type: ignore[arg-type]

    def plan(self, chosen: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where copies go: `[T, K]` distinct experts to place `[T, K]`, source `[R]` and counts `[E]`; see `dispatch.Dispatched`."""
        check(chosen, types=(torch.int64,))
        if chosen.is_meta:
            return torch.empty_like(chosen), chosen.flatten(), chosen.new_empty(experts)
        return functions.plan(chosen.contiguous(), experts, multiple)

    def copy(self, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """Each token `[T, D]` to its rows of `[R, D]`, token 0 to padding. Differentiable."""
        check(x)
        fit(x, place, len(source))
        if x.is_meta:
            return x.new_empty(len(source), x.shape[1])
        return functions.Copy.apply(x.contiguous(), source, place.contiguous())  # type: ignore[return-value]

    def copy_codes(self, codes: Tensor, factors: Tensor, source: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The same for FP8 codes `[T, D]`, or bytes, and the fp32 factors of their tiles `[T, F]`, in one launch; not differentiable."""
        check(codes, types=CODES)
        check(factors, types=(torch.float32,))
        fit(codes, place, len(source))
        fit(factors, place, len(source))
        if codes.is_meta:
            return codes.new_empty(len(source), codes.shape[1]), factors.new_empty(len(source), factors.shape[1])
        return functions.spread(codes.contiguous(), place.contiguous(), len(source), factors.contiguous())  # type: ignore[return-value]

    def sum(self, rows: Tensor, source: Tensor, place: Tensor, weights: Tensor | None = None) -> Tensor:
        """Each token's rows `[R, D]`, times fp32 `weights` `[T, K]` if they are given, added up to `[T, D]`. Differentiable."""
        check(rows)
        if len(rows) != len(source) or (weights is not None and (weights.shape != place.shape or weights.dtype != torch.float32)):
            raise ValueError(f"rows {[*rows.shape]} of {len(source)} and fp32 weights of {[*place.shape]} were expected")
        if rows.is_meta:
            return rows.new_empty(place.shape[0], rows.shape[1])
        rows, place = rows.contiguous(), place.contiguous()
        if weights is None:
            return functions.Sum.apply(rows, place)  # type: ignore[return-value]
        return functions.WeightedSum.apply(rows, place, weights.contiguous())  # type: ignore[return-value]

    def grouped(self, x: Tensor, weight: Tensor, counts: Tensor, store: WeightGradients | None) -> Tensor:
        """Rows `[N, d_in]` sorted by expert, `[E, d_out, d_in]` and `[E]` int64 counts to `[N, d_out]`; see `core.layers.grouped`.

        Never waits for the GPU. The weight gradient is summed in fp32 and has the dtype of `weight`.
        """
        check(x)
        if weight.shape[0] != len(counts) or weight.shape[2] != x.shape[1] or counts.dtype != torch.int64:
            raise ValueError(f"rows {[*x.shape]}, matrices {[*weight.shape]} and {len(counts)} {counts.dtype} counts do not fit")
        return functions.Grouped.apply(x.contiguous(), weight, counts.contiguous(), store)  # type: ignore[return-value]


def check(tensor: Tensor, *, types: tuple[torch.dtype, ...] = TYPES) -> None:
    """Refuses what the kernels cannot run on.

    Raises:
        BestiaryError: a tensor outside a GPU, or of another type than `types`; names the fallback.
    """
    remedy, where = "Set block.ffn.kernels = 'torch'.", "block.ffn.kernels = 'triton'"
    if not (tensor.is_cuda or tensor.is_meta or INTERPRETED):
        raise BestiaryError(Problem(f"the kernels run on a GPU, and this tensor is on {tensor.device}.", where, remedy))
    if tensor.dtype not in types:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in types)
        raise BestiaryError(Problem(f"this kernel takes {known}, and not {str(tensor.dtype).removeprefix('torch.')}.", where, remedy))


def fit(x: Tensor, place: Tensor, rows: int) -> None:
    """Raises `ValueError` unless `[T, D]` can go to `place` `[T, K]` in so many rows."""
    if x.ndim != 2 or x.shape[0] != place.shape[0] or rows < place.numel():
        raise ValueError(f"{[*x.shape]} and places {[*place.shape]} in {rows} rows do not fit")
