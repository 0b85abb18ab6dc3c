"""Launches the kernels, on an NVIDIA GPU or, where tests ask for it, in Triton's interpreter."""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ....core.errors import BestiaryError, Problem
from . import decode as decoding
from . import prefill, tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = (torch.bfloat16, torch.float16, torch.float32)
LEAST_POSITIONS = 256
"""A program of decoding takes at least so many, where its sequence has them."""


class Kernels:
    """Attention of MLA by kernels, in both of its forms; of meta tensors the expanded form gives the shapes."""

    def attention(
        self, q: Tensor, kv: Tensor, k_pe: Tensor, *, nope: int, scale: float, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Causal attention in expanded form; the last query sees all keys. Differentiable in all tensors but the log-sum-exp.

        Args:
            q: `[B, S, H, nope + rope]`
            kv: `[B, T, H, nope + value]`, every head's key and then its value; T is at least S.
            k_pe: `[B, T, rope]`, the rotary key that all heads share.
            nope: columns of a key that carry no position.
            scale: of the softmax.
            segments: `[B, S]`, the document of each position, where T equals S.

        Returns:
            `[B, S, H, value]`, and the log-sum-exp of the scores `[B, H, S]` in fp32.

        Raises:
            BestiaryError: the tensors are not on a GPU, or of a type that the kernels do not know.
            ValueError: shapes do not fit.
        """
        check(q, kv, k_pe)
        (batch, rows, heads, _), columns = q.shape, kv.shape[1]
        if (kv.shape[0], kv.shape[2], *k_pe.shape) != (batch, heads, batch, columns, q.shape[3] - nope) or columns < rows:
            raise ValueError(f"q {[*q.shape]}, kv {[*kv.shape]} and k_pe {[*k_pe.shape]} do not fit with {nope} columns without position")
        if segments is not None and (columns != rows or segments.shape != (batch, rows)):
            raise ValueError(f"segments {[*segments.shape]} do not fit {batch} x {rows} queries on {columns} keys")
        if q.is_meta:
            return q.new_empty(batch, rows, heads, kv.shape[3] - nope), q.new_empty(batch, heads, rows, dtype=torch.float32)
        return _Attention.apply(q, kv, k_pe, segments, nope, scale)  # type: ignore[return-value]

    def decode(
        self,
        q: Tensor,
        cache: Tensor,
        lengths: Tensor,
        *,
        latent: int,
        scale: float,
        table: Tensor | None = None,
        queries: int = 1,
        splits: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Absorbed attention on the cache; not differentiable.

        Args:
            q: `[R, H, latent + rope]`, `queries` rows for each sequence, one after the other.
            cache: contiguous, pages `[pages, PAGE, latent + rope]` if there is a table, else `[R / queries, capacity, latent + rope]`.
            lengths: `[R]`, how many positions each row sees; 0 gives the output 0 and the log-sum-exp of minus infinity.
            latent: columns of the cache that are also the value.
            scale: of the softmax.
            table: `[R / queries, pages of a sequence]`, int32 or int64, indices of pages; what lies beyond a length is not read.
            queries: rows of a sequence.
            splits: programs that share a row's positions, chosen to fill the GPU when None.

        Returns:
            `[R, H, latent]`, and the log-sum-exp `[R, H]` in fp32.

        Raises:
            BestiaryError: the tensors are not on a GPU, or of a type that the kernels do not know.
            ValueError: shapes do not fit.
        """
        check(q, cache)
        (rows, _, width), held = q.shape, cache if table is None else table
        if not cache.is_contiguous() or cache.ndim != 3 or cache.shape[2] != width or lengths.shape != (rows,) or width <= latent:
            raise ValueError(f"q {[*q.shape]} and lengths {[*lengths.shape]} do not fit the cache {[*cache.shape]}, which is contiguous")
        if held.shape[0] * queries != rows or (table is not None and cache.shape[1] != tiles.PAGE):
            raise ValueError(f"{rows} rows do not fit {held.shape[0]} sequences of {queries} queries, with pages of {tiles.PAGE} positions")
        return _decode(q.contiguous(), cache, table, lengths.contiguous(), latent, scale, queries, splits)


def check(*tensors: Tensor) -> None:
    """Refuses what the kernels cannot run on.

    Raises:
        BestiaryError: tensors outside a GPU, or of other types than bf16, fp16 and fp32; names the fallback.
    """
    remedy, where = "Set block.attention.kernels = 'torch'.", "block.attention.kernels = 'triton'"
    for tensor in tensors:
        if not (tensor.is_cuda or tensor.is_meta or INTERPRETED):
            raise BestiaryError(Problem(f"the kernels run on a GPU, and this tensor is on {tensor.device}.", where, remedy))
        if tensor.dtype not in TYPES or tensor.dtype != tensors[0].dtype:
            found = ", ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
            raise BestiaryError(Problem(f"the kernels take bf16, fp16 or fp32, the same for all, and not {found}.", where, remedy))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, k_pe: Tensor, segments: Tensor | None, nope: int, scale: float) -> tuple[Tensor, Tensor]:
        q, kv, k_pe = (t.contiguous() for t in (q, kv, k_pe))
        documents = q.new_empty(0, dtype=torch.int64) if segments is None else segments.contiguous()
        (batch, rows, heads, _), columns = q.shape, kv.shape[1]
        widths = {"NOPE": nope, "ROPE": k_pe.shape[2], "VALUE": kv.shape[3] - nope}
        ctx.constants = {"HEADS": heads, **widths, "SEGMENTS": segments is not None}
        ctx.numbers = (rows, columns, scale)
        out = q.new_empty(batch, rows, heads, widths["VALUE"])
        lse = q.new_empty(batch, heads, rows, dtype=torch.float32)
        how = tiles.FORWARD[tiles.short(q.dtype)]
        grid = (batch * heads * triton.cdiv(rows, how["BLOCK_M"]),)
        if grid[0]:
            prefill.forward_kernel[grid](q, kv, k_pe, documents, out, lse, *ctx.numbers, **ctx.constants, **how)
        ctx.save_for_backward(q, kv, k_pe, documents, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, k_pe, documents, out, lse = ctx.saved_tensors
        (batch, rows, heads, _), columns = q.shape, kv.shape[1]
        grad, product = grads[0].contiguous(), torch.empty_like(lse)
        q_grad, kv_grad, k_pe_grad = torch.empty_like(q), torch.empty_like(kv), q.new_empty(batch, columns, heads, k_pe.shape[2])
        how = tiles.QUERY_GRADIENT[tiles.short(q.dtype)]
        grid = (batch * heads * triton.cdiv(rows, how["BLOCK_M"]),)
        given = (q, kv, k_pe, documents)
        if grid[0]:
            kernel = prefill.query_gradient_kernel[grid]
            kernel(*given, out, grad, lse, product, q_grad, *ctx.numbers, **ctx.constants, **how)
        how = tiles.KEY_GRADIENT[tiles.short(q.dtype)]
        grid = (batch * heads * triton.cdiv(columns, how["BLOCK_N"]),)
        if grid[0]:
            kernel = prefill.key_gradient_kernel[grid]
            kernel(*given, grad, lse, product, kv_grad, k_pe_grad, *ctx.numbers, **ctx.constants, **how)
        return q_grad, kv_grad, k_pe_grad.sum(dim=2), None, None, None


def _decode(
    q: Tensor, cache: Tensor, table: Tensor | None, lengths: Tensor, latent: int, scale: float, queries: int, splits: int | None
) -> tuple[Tensor, Tensor]:
    rows, heads, width = q.shape
    how = (tiles.DECODE_FEW if heads <= tiles.FEW else tiles.DECODE)[tiles.short(q.dtype)]
    blocks = -(-heads // how["BLOCK_H"])
    pages = cache if table is None else table.contiguous()
    capacity = pages.shape[1]
    if splits is None:
        positions = capacity * (1 if table is None else tiles.PAGE)
        splits = max(1, min(_programs(q.device, heads <= tiles.FEW) // max(rows * blocks, 1), positions // LEAST_POSITIONS))
    out, lse = q.new_empty(rows, heads, latent), q.new_empty(rows, heads, dtype=torch.float32)
    if not out.numel():
        return out, lse
    parts = q.new_empty(rows, splits, heads, latent, dtype=torch.float32) if splits > 1 else out
    part_lse = q.new_empty(rows, splits, heads, dtype=torch.float32) if splits > 1 else lse
    sizes = (splits, capacity, queries, scale)
    constants = {"HEADS": heads, "LATENT": latent, "ROPE": width - latent, "PAGE": 0 if table is None else tiles.PAGE}
    decoding.attend_kernel[(rows * splits, blocks)](q, cache, pages, lengths, parts, part_lse, *sizes, **constants, **how)
    if splits > 1:
        constants = {"LATENT": latent, "WIDTH": triton.next_power_of_2(latent), "SPLITS": triton.next_power_of_2(splits)}
        decoding.combine_kernel[(rows, heads)](parts, part_lse, out, lse, heads, splits, **constants)
    return out, lse


@lru_cache
def _programs(device: torch.device, few: bool) -> int:
    """Programs of decoding that a device runs at a time: by their shared memory, two for a multiprocessor if they have few heads."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count * (2 if few else 1)
