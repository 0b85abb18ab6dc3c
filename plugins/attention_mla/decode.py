"""Absorbed MLA for a few bf16 positions on a CPU; returns None where torch should do it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...core.cache import LayerCache
from ...core.native import few_rows, library

_address, _long = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class Widths:
    """The dimensions of one head, and of the latent."""

    heads: int
    nope: int
    rope: int
    value: int
    latent: int


@cache
def _kernels() -> ctypes.CDLL | None:
    found = library(Path(__file__).parent / "decode.cpp")
    if found is not None:
        found.absorbed.argtypes = [_address] * 8 + [_long] * 9 + [ctypes.c_float] * 2 + [ctypes.c_bool]
    return found


def absorbed(
    q: Tensor,
    kv: Tensor,
    gain: Tensor,
    kv_b: Tensor,
    table: tuple[Tensor, Tensor],
    cache: LayerCache,
    *,
    widths: Widths,
    scale: float,
    eps: float,
    interleaved: bool,
) -> Tensor | None:
    """Adds new positions to the cache and attends to all of it.

    Args:
        q: `[B, S, H * (nope + rope)]`, before RoPE.
        kv: `[B, S, latent + rope]`, before norm and RoPE.
        gain: `[latent]`, of the norm on the latent.
        kv_b: `[H * (nope + value), latent]`.
        table: cosine and sine `[1, S, rope / 2]`.
        cache: this layer's; it holds `length` positions.
        widths: dimensions.
        scale: of the softmax.
        eps: of the norm on the latent.
        interleaved: layout of rotary pairs.

    Returns:
        `[B, S, H * value]`
    """
    buffer = cache.buffers["latent"]
    if kv_b.dtype is not torch.bfloat16 or gain.dtype is not torch.bfloat16 or buffer.dtype is not torch.bfloat16:
        return None
    if table[0].shape[0] != 1 or not (few_rows(q) and few_rows(kv)) or (kernels := _kernels()) is None:
        return None
    batch, length, w = *q.shape[:2], widths
    past, _ = cache.length, cache.grow(length)
    out = q.new_empty(batch, length, w.heads * w.value)
    addresses = (t.data_ptr() for t in (q, kv, gain, kv_b, *table, buffer, out))
    sizes = (batch, length, cache.capacity, past, w.heads, w.nope, w.rope, w.value, w.latent)
    kernels.absorbed(*addresses, *sizes, scale, eps, interleaved)
    return out
