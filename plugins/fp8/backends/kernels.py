"""FP8 by our own Triton kernels, on an NVIDIA GPU of compute capability 8.9 or above."""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import os

import torch
import triton
from torch import Tensor

from ....core.errors import BestiaryError
from ..kernels import product as product_kernels
from ..kernels import quantize as quantise_kernels
from ..quantize import Quantised, Rule, Tile, quantise
from . import AlongTokens, one_by_one

TILE = quantise_kernels.TILE
TILES = {(1, TILE), (TILE, 1), (TILE, TILE)}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Kernels:
    """Quantises and multiplies by kernels; tiles and conventions that have none are quantised by torch."""

    name = "triton"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        check_device(x)
        known = tile in TILES and (rule.power_of_two or rule.convention == "deepseek-v3")
        if not known or (rule.convention == "te" and rule.power_of_two) or x.numel() == 0:
            return quantise(x, tile, rule)
        sizes = (tile[0] or 1, tile[1] or 1)
        return _stacked(x.contiguous(), sizes, rule) if x.ndim > 2 else _matrix(x.contiguous(), sizes, rule)

    def values(self, q: Quantised, dtype: torch.dtype) -> Tensor:
        """`q.values(dtype)`."""
        return q.values(dtype)

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        rows = a.codes.shape[0]
        blocks = torch.empty(0, dtype=torch.int32, device=a.codes.device)
        single = Quantised(b.codes[None], b.scale[None], b.tile)
        count = triton.cdiv(rows, product_kernels.configuration(rows, b.tile[0])["BLOCK_M"])
        return _launch(a, single, blocks, count, dtype, grouped=False)

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, and `[E, N, K]`, to `[M, N]`."""
        step = product_kernels.configuration(a.codes.shape[0], b.tile[0])["BLOCK_M"]
        table, start = [], 0
        for expert, size in enumerate(sizes):
            table += [(expert, first, start + size) for first in range(start, start + size, step)]
            start += size
        blocks = torch.tensor(table, dtype=torch.int32, device=a.codes.device)
        return _launch(a, b, blocks, len(table), dtype, grouped=True)

    def weight_gradient(self, dy: AlongTokens, x: AlongTokens, sizes: list[int]) -> Tensor:
        """`dy[e].T @ x[e]` of each expert, fp32."""
        return one_by_one(self, dy, x, sizes)


def check_device(x: Tensor) -> None:
    """Refuses what the kernels cannot run on.

    Raises:
        BestiaryError: a CPU tensor, or a GPU without FP8; names the fallback.
    """
    fallback = "Set precision.backend = 'emulation'."
    if INTERPRETED:
        return
    if x.device.type != "cuda":
        raise BestiaryError(f"precision.backend = 'triton': the kernels run on a GPU, and this tensor is on {x.device}. {fallback}")
    if torch.cuda.get_device_capability(x.device) < (8, 9):
        name = torch.cuda.get_device_name(x.device)
        raise BestiaryError(f"precision.backend = 'triton': {name} has no FP8, which begins at compute capability 8.9. {fallback}")


def _matrix(x: Tensor, tile: tuple[int, int], rule: Rule) -> Quantised:
    rows, columns = x.shape
    scale = torch.empty(triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1]), dtype=torch.float32, device=x.device)
    codes = torch.empty(x.shape, dtype=rule.dtype, device=x.device)
    height, width = quantise_kernels.shape_of_program(tile)
    quantise_kernels.quantise_kernel[(triton.cdiv(rows, height), triton.cdiv(columns, width))](
        x,
        codes,
        scale,
        rows,
        columns,
        scale.shape[1],
        rule.floor,
        LARGEST=torch.finfo(rule.dtype).max,
        POWER_OF_TWO=rule.power_of_two,
        ROWS=height,
        COLUMNS=width,
        TILE_ROWS=tile[0],
        TILE_COLUMNS=tile[1],
    )
    return Quantised(codes, scale, tile)


def _stacked(x: Tensor, tile: tuple[int, int], rule: Rule) -> Quantised:
    parts = [_matrix(part, tile, rule) for part in x.flatten(0, -3)]
    codes, scale = (torch.stack([getattr(part, name) for part in parts]) for name in ("codes", "scale"))
    return Quantised(codes.view(x.shape), scale.view(*x.shape[:-2], *scale.shape[1:]), tile)


def _launch(a: Quantised, b: Quantised, blocks: Tensor, count: int, dtype: torch.dtype, *, grouped: bool) -> Tensor:
    check_device(a.codes)
    (rows, k), n = a.codes.shape, b.codes.shape[1]
    out = torch.zeros(rows, n, dtype=dtype, device=a.codes.device)
    if not (count and n and k):
        return out
    for side in (a, b):
        if side.tile[1] != TILE and side.scale.shape[-1] != 1:
            raise AssertionError(f"factors cover {side.tile[1]} columns: neither {TILE} nor all")
    how = product_kernels.configuration(rows, b.tile[0])
    product_kernels.product_kernel[(count, triton.cdiv(n, how["BLOCK_N"]))](
        a.codes.contiguous(),
        a.scale,
        b.codes.contiguous(),
        b.scale,
        out,
        blocks,
        rows,
        n,
        k,
        a.scale.stride(0),
        a.scale.stride(1) if a.scale.shape[1] > 1 else 0,
        b.scale.stride(0),
        b.scale.stride(1),
        b.scale.stride(2) if b.scale.shape[2] > 1 else 0,
        A_ROWS=a.tile[0],
        B_ROWS=b.tile[0],
        GROUPED=grouped,
        STEP=product_kernels.STEP,
        enable_fp_fusion=False,
        **how,
    )
    return out
