"""E5M6, in which DeepSeek-V3 keeps the input of the projection after attention for the backward pass (technical report, section 3.3.3).

Twelve bits: a sign, five exponent bits with bias 15, six mantissa bits. Those are the upper bits of fp16: exponent 31 is infinity and
NaN, exponent 0 holds zero and subnormal numbers of 2^-20, and the largest number is 65024. Numbers are rounded to nearest, ties to
even.

    s = max(amax, floor) / 65024 of 128 channels of a token, rounded up to a power of two        code = e5m6(x / s)

A number of seven significant bits times a power of two is a bf16 number, so that decoding rounds nothing: what is quantised again
along tokens are the kept numbers themselves. Two codes lie in three bytes, 1.53 bytes a number with its share of the factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...core.blocks import round_up_to_power_of_two
from .options import TILE

LARGEST = 65024.0
NAN = 0x7FF
"""The code of NaN that `encode` writes."""
STEPS_IN_FP32 = 8.0
"""fp32 numbers from here on lie 2^-20 apart, as subnormal numbers of E5M6 do."""


def encode(x: Tensor) -> Tensor:
    """fp32 to codes 0 to 4095, int32; beyond the largest number and at infinity they saturate, NaN stays NaN."""
    magnitude = x.abs().clamp(max=LARGEST)
    bits = magnitude.view(torch.int32)
    normal = ((bits + 0xFFFF + ((bits >> 17) & 1)) >> 17) - (112 << 6)
    small = (magnitude + STEPS_IN_FP32).view(torch.int32) - torch.tensor(STEPS_IN_FP32).view(torch.int32).item()
    codes = torch.where(magnitude < 2.0**-14, small, normal)
    return torch.where(x.isnan(), NAN, codes) | (torch.signbit(x).to(torch.int32) << 11)


def decode(codes: Tensor) -> Tensor:
    """Codes to fp32, exactly."""
    return (codes << 4).to(torch.int16).view(torch.float16).float()


def pack(codes: Tensor) -> Tensor:
    """`[M, C]` codes, C even, to `[M, 3 C / 2]` bytes."""
    first, second = codes[:, ::2], codes[:, 1::2]
    three = torch.stack((first & 0xFF, (first >> 8) | ((second & 0xF) << 4), second >> 4), dim=-1)
    return three.to(torch.uint8).flatten(1)


def unpack(packed: Tensor) -> Tensor:
    """`[M, 3 C / 2]` bytes to `[M, C]` codes."""
    low, middle, high = packed.to(torch.int32).unflatten(1, (-1, 3)).unbind(-1)
    return torch.stack((low | ((middle & 0xF) << 8), (middle >> 4) | (high << 4)), dim=-1).flatten(1)


@dataclass(frozen=True)
class Packed:
    """A matrix `[M, C]` in E5M6: bytes `[M, 3 C' / 2]`, C' being C or the next even number, and factors `[M, ceil(C / 128)]` fp32."""

    data: Tensor
    scale: Tensor
    columns: int

    def values(self, dtype: torch.dtype) -> Tensor:
        """`[M, C]`; in bf16 and in fp32 exactly the kept numbers."""
        numbers = decode(unpack(self.data))[:, : self.columns]
        return (numbers * self.scale.repeat_interleave(TILE, dim=1)[:, : self.columns]).to(dtype)


def keep_e5m6(x: Tensor, floor: float) -> Packed:
    """Codes of a matrix.

    Args:
        x: `[M, C]`, any float dtype. A tile that holds NaN or infinity becomes NaN throughout, as in FP8.
        floor: least amax of a tile.
    """
    columns = x.shape[1]
    tiles = functional.pad(x.float(), (0, -columns % TILE)).unflatten(1, (-1, TILE))
    amax = tiles.abs().amax(-1)
    scale = round_up_to_power_of_two(amax.clamp(min=floor) / LARGEST)
    scale = torch.where(amax.isfinite(), scale, torch.nan)
    codes = encode(tiles / scale[..., None]).flatten(1)
    return Packed(pack(codes[:, : columns + columns % 2]), scale, columns)
