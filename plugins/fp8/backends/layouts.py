"""How libraries want codes and factors to lie in memory; numbers are those of `Quantised`, nothing is computed.

What is padded has codes of zero and factors of one, which add nothing to a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ....core.errors import BestiaryError
from ..options import TILE
from ..quantize import Quantised
from . import Backend


def padded(q: Quantised, rows: int, columns: int = TILE) -> Quantised:
    """Contiguous codes whose last two dimensions are multiples of `rows` and `columns`, with the factors of what was added.

    Args:
        q: `[..., R, C]`, tiles of one row or of 128, and of 128 columns.
        rows: a multiple of the rows of a tile.
        columns: a multiple of the columns of a tile.
    """
    down, across = -q.codes.shape[-2] % rows, -q.codes.shape[-1] % columns
    if not (down or across):
        return Quantised(q.codes.contiguous(), q.scale, q.tile)
    codes = functional.pad(q.codes.contiguous().view(torch.uint8), (0, across, 0, down)).view(q.codes.dtype)
    shape = (codes.shape[-2] // q.tile[0], codes.shape[-1] // q.tile[1])
    missing = (0, shape[1] - q.scale.shape[-1], 0, shape[0] - q.scale.shape[-2])
    return Quantised(codes, functional.pad(q.scale, missing, value=1.0), q.tile)


def column_major(factors: Tensor, multiple: int = 1) -> Tensor:
    """Factors `[M, C]` with strides `(1, M)`, M rounded up to a multiple, so that each column begins aligned."""
    rows, columns = factors.shape
    height = rows + -rows % multiple
    out = torch.empty_strided((height, columns), (1, height), dtype=factors.dtype, device=factors.device)
    out[:rows].copy_(factors)
    out[rows:].fill_(1.0)
    return out[:rows]


def check_on_gpu(name: str, x: Tensor, kind: str) -> None:
    """Refuses a tensor that is not where the backend computes.

    Raises:
        BestiaryError: names the fallback.
    """
    if x.device.type != kind:
        fact = f"its products run on a GPU, and this tensor is on {x.device}."
        raise BestiaryError(f"precision.backend = '{name}': {fact} Set precision.backend = 'emulation'.")


def one_expert_at_a_time(backend: Backend, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
    """`grouped` of a backend that has no grouped product: one product for each expert that has rows."""
    out = torch.zeros(a.codes.shape[0], b.codes.shape[1], dtype=dtype, device=a.codes.device)
    parts = zip(a.codes.split(sizes), a.scale.split(sizes), b.codes, b.scale, out.split(sizes), strict=True)
    for codes, scale, matrix, factors, to in parts:
        if len(to):
            to.copy_(backend.product(Quantised(codes, scale, a.tile), Quantised(matrix, factors, b.tile), dtype))
    return out
