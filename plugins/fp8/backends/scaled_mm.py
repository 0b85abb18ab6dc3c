"""FP8 by torch's own `scaled_mm`, cuBLAS's products of 1x128 tiles with 128x128 blocks or 1x128 tiles: Hopper, CUDA 12.9 and above.

torch 2.13 checks layouts, on meta tensors too: factors of 1x128 tiles `[M, K / 128]` with strides `(1, M)`; those of blocks
`[L, N / 128]` with strides `(1, L)`, L being K / 128 rounded up to a multiple of 4; left codes by rows, right ones by columns; K and N
multiples of 128. cuBLAS wants M a multiple of 4 besides, and a result dtype that is named. torch's grouped product takes no blocks:
experts are multiplied one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import ScalingType

from ..options import TILE
from ..quantize import Quantised
from . import Backend
from .beside import Beside
from .layouts import check_on_gpu, column_major, one_expert_at_a_time, padded

ROWS = 4
"""What M is a multiple of, and K / 128 in the factors of blocks."""


class ScaledMM(Beside):
    """Multiplies by torch; another backend quantises and decodes."""

    name = "scaled_mm"
    device_type = "cuda"

    def __init__(self, beside: Backend, reason: str = "") -> None:
        self.beside, self.reason = beside, reason

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        check_on_gpu(self.name, a.codes, self.device_type)
        (rows, k), n = a.codes.shape, b.codes.shape[0]
        if not (rows and n and k):
            return torch.zeros(rows, n, dtype=dtype, device=a.codes.device)
        left, right = padded(a, ROWS), padded(b, TILE)
        recipe, factors = _right(right)
        out = functional.scaled_mm(
            left.codes,
            right.codes.t(),
            column_major(left.scale),
            ScalingType.BlockWise1x128,
            factors,
            recipe,
            output_dtype=dtype,
        )
        return out[:rows, :n]

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, and `[E, N, K]`, to `[M, N]`."""
        return one_expert_at_a_time(self, a, b, sizes, dtype)


def _right(q: Quantised) -> tuple[ScalingType, Tensor]:
    """Recipe and factors of the right operand, `[N, K]` padded."""
    if q.tile[0] == 1:
        return ScalingType.BlockWise1x128, column_major(q.scale)
    return ScalingType.BlockWise128x128, functional.pad(q.scale, (0, -q.scale.shape[1] % ROWS), value=1.0).contiguous().t()
