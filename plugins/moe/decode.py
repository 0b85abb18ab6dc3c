"""Routing and experts for a few bf16 tokens on a CPU; every function returns None where torch should do it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...core.native import few_rows, library
from .hookspecs import Routing
from .options import SigmoidGroupOptions

_address, _long = ctypes.c_void_p, ctypes.c_int64


@cache
def _kernels() -> ctypes.CDLL | None:
    found = library(Path(__file__).parent / "decode.cpp")
    if found is not None:
        found.route_sigmoid_group.argtypes = [_address] * 5 + [_long] * 6 + [ctypes.c_float, ctypes.c_bool]
        found.experts.argtypes = [_address] * 6 + [_long] * 5
    return found


def route_sigmoid_group(x: Tensor, weight: Tensor, bias: Tensor, k: int, options: SigmoidGroupOptions) -> Routing | None:
    """`[T, D]`, `[E, D]`, `[E]` to `Routing` without scores; see `routers.SigmoidGroup`."""
    if weight.dtype is not torch.bfloat16 or not few_rows(x) or (kernels := _kernels()) is None:
        return None
    rows, d = x.shape
    chosen, weights = x.new_empty(rows, k, dtype=torch.int64), x.new_empty(rows, k, dtype=torch.float32)
    addresses = (t.data_ptr() for t in (x, weight, bias, chosen, weights))
    sizes = (rows, d, weight.shape[0], options.n_group, options.topk_group, k)
    kernels.route_sigmoid_group(*addresses, *sizes, options.routed_scaling_factor, options.norm_topk_prob)
    return Routing(weights, chosen)


def experts(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor | None:
    """`[T, D]`, routing, `[E, 2 I, D]` and `[E, D, I]` to `[T, D]`, weighted and summed."""
    if gate_up.dtype is not torch.bfloat16 or not few_rows(x) or (kernels := _kernels()) is None:
        return None
    (rows, d), (count, _, hidden) = x.shape, down.shape
    chosen, weights = routing.experts.contiguous(), routing.weights.float().contiguous()
    out = torch.empty_like(x)
    addresses = (t.data_ptr() for t in (x, chosen, weights, gate_up, down, out))
    kernels.experts(*addresses, rows, chosen.shape[1], count, d, hidden)
    return out
