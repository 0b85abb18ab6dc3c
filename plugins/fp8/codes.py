"""`quantize` and the model of Hopper's sums by C++ kernels on a CPU: the same codes, factors and numbers, several times as fast.

Each function returns None for what the kernels do not cover; torch computes it then. They cover E4M3 with power-of-two factors.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...core.native import library
from .quantize import Quantised, Rule

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SMALLEST_FLOOR = 2.0**-100
"""Below, a factor or its reciprocal may be no normal number."""
HIGH, WIDE = 4, 64
"""Rows and columns that `hopper` takes at once."""
_int, _pointer = ctypes.c_int64, ctypes.c_void_p


def quantise(x: Tensor, tile: tuple[int, int], rule: Rule) -> Quantised | None:
    """`quantize.quantise` of finite numbers `[..., R, C]`."""
    covered = rule.power_of_two and rule.format == "e4m3" and rule.convention != "te" and rule.floor >= SMALLEST_FLOOR
    kernels = _kernels(x) if covered and x.dtype in NAMES else None
    if kernels is None:
        return None
    x, (rows, columns) = x.contiguous(), x.shape[-2:]
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(*x.shape[:-2], -(-rows // tile[0]), -(-columns // tile[1]))
    sizes = (math.prod(x.shape[:-2]), rows, columns, *tile)
    call = getattr(kernels, f"quantise_{NAMES[x.dtype]}")
    finite = call(_at(x), _at(codes), _at(scale), *map(_int, sizes), ctypes.c_float(rule.floor))
    return Quantised(codes, scale, tile) if finite else None


def values(q: Quantised, dtype: torch.dtype) -> Tensor | None:
    """`q.values(dtype)` of E4M3 codes."""
    if q.codes.mT.is_contiguous() and not q.codes.is_contiguous():
        transposed = values(q.T, dtype)
        return None if transposed is None else transposed.mT
    kernels = _kernels(q.codes) if q.codes.dtype == torch.float8_e4m3fn and dtype in NAMES else None
    if kernels is None:
        return None
    codes, scale = q.codes.contiguous(), q.scale.contiguous()
    to = torch.empty(codes.shape, dtype=dtype)
    sizes = (math.prod(codes.shape[:-2]), *codes.shape[-2:], *q.tile)
    getattr(kernels, f"values_{NAMES[dtype]}")(_at(codes), _at(scale), _at(to), *map(_int, sizes))
    return to


def hopper(a: Tensor, b: Tensor, cut: int, *, promote: bool) -> Tensor | None:
    """`emulation.hopper`: `[M, K]` and `[N, K]` fp32 to `[M, N]`."""
    kernels = _kernels(a) if a.dtype == torch.float32 else None
    if kernels is None:
        return None
    (m, k), n = a.shape, b.shape[0]
    left = functional.pad(a, (0, 0, 0, -m % HIGH)).contiguous()
    right = functional.pad(b.T, (0, -n % WIDE)).contiguous()
    out = torch.empty(len(left), right.shape[1])
    sizes = (*out.shape, k, cut)
    kernels.hopper(_at(left), _at(right), _at(out), *map(_int, sizes), ctypes.c_int32(promote))
    return out[:m, :n]


def _kernels(x: Tensor) -> ctypes.CDLL | None:
    if x.device.type != "cpu" or not x.numel():
        return None
    return library(Path(__file__).with_name("codes.cpp"))


def _at(x: Tensor) -> ctypes.c_void_p:
    return _pointer(x.data_ptr())
