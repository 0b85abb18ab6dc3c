"""FP8 blocks to numbers: `W[i, j] = W_fp8[i, j] * scale_inv[i // r, j // c]`, exactly, in fp32, then rounded once.

The block size comes from the checkpoint's config. It cannot be told from shapes: 192 rows with two rows of scales are blocks of 128
rows and a half block, not two blocks of 96.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.blocks import decode_e4m3
from ..core.errors import BestiaryError
from .layout import Block


def spread_columns(scale: Tensor, block: Block, columns: int) -> Tensor:
    """Scales of each block row by column: `[..., ceil(R / r), ceil(C / c)]` to `[..., ceil(R / r), C]` fp32."""
    return scale.float().repeat_interleave(block[1], dim=-1)[..., :columns]


def check_scales(scale: Tensor, name: str, file: str) -> None:
    """Refuses scales that are no positive finite numbers.

    Raises:
        BestiaryError: names the tensor and counts its bad entries.
    """
    bad = ~(torch.isfinite(scale.float()) & (scale.float() > 0))
    if bad.any():
        raise BestiaryError(
            f"{file}: {name}: {int(bad.sum())} of {scale.numel()} scales are zero, negative or not finite. "
            "The file is damaged, or was quantised wrongly: fetch it again, or use unquantised weights."
        )


def dequantise(rows: Tensor, columns_scale: Tensor, out: Tensor) -> None:
    """Some block rows of equal height, or a part of one.

    Args:
        rows: `[n, C]` float8_e4m3fn.
        columns_scale: `[b, C]` fp32, from `spread_columns`; b divides n.
        out: `[n, C]`, any float dtype and device.
    """
    numbers = decode_e4m3(rows)
    numbers.view(len(columns_scale), -1, rows.shape[1]).mul_(columns_scale[:, None])
    out.copy_(numbers)
