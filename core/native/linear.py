"""Linear, SwiGLU and RMSNorm on a few bf16 rows; every function returns None where torch should do it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import few_rows, library

_long = ctypes.c_int64


@cache
def _kernels() -> ctypes.CDLL | None:
    found = library(Path(__file__).parent / "linear.cpp")
    if found is not None:
        address = ctypes.c_void_p
        found.linear.argtypes = [address] * 3 + [_long] * 3
        found.rms_norm.argtypes = [address] * 3 + [_long] * 3 + [ctypes.c_float]
        found.swiglu.argtypes = [address] * 5 + [_long] * 3
    return found


def linear(x: Tensor, weight: Tensor) -> Tensor | None:
    """`[..., k]` and `[n, k]` to `[..., n]`."""
    if weight.dtype is not torch.bfloat16 or x.shape[-1] != weight.shape[1] or not few_rows(x) or (kernels := _kernels()) is None:
        return None
    n, k = weight.shape
    out = x.new_empty(*x.shape[:-1], n)
    kernels.linear(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // k, n, k)
    return out


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor | None:
    """`[..., n]` and `[n]` to `[..., n]`."""
    if gain.dtype is not torch.bfloat16 or not few_rows(x) or (kernels := _kernels()) is None:
        return None
    n = gain.shape[0]
    out = torch.empty_like(x)
    kernels.rms_norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), x.numel() // n, n, n, eps)
    return out


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor | None:
    """`down(silu(gate x) * up x)`: `[..., d]`, `[hidden, d]` twice, `[d, hidden]`, to `[..., d]`."""
    if gate.dtype is not torch.bfloat16 or not few_rows(x) or (kernels := _kernels()) is None:
        return None
    hidden, d = gate.shape
    out = torch.empty_like(x)
    addresses = (t.data_ptr() for t in (x, gate, up, down, out))
    kernels.swiglu(*addresses, x.numel() // d, d, hidden)
    return out
