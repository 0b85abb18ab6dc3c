"""Blockwise FP8, as DeepSeek-V3 stores its weights: the definition, in plain torch.

A matrix is cut into blocks of r rows and c columns; those at its edges may be smaller. Each block has one fp32 factor s, and
numbers w are kept as e4m3(w / s), with s = max(amax, 1e-4) / 448 (DeepSeek-V3 technical report, section 3.3; 448 is the largest
number of E4M3). Where s is rounded up to a power of two (UE8M0, as in DeepSeek-V3.1), division and multiplication are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

E4M3_MAX = 448.0
AMAX_FLOOR = 1e-4
"""Least amax of a block, so that blocks of zeros have a factor too."""

Block = tuple[int, int]
Index = tuple[int | slice, ...]
"""A region of a parameter; dimensions that are missing at the end are whole."""

STRIP = 1 << 18
"""Numbers that are decoded together where a matrix is decoded for one product: few calls, and little memory beside the result."""


def quantise_blocks(weight: Tensor, block: Block = (128, 128), *, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and factors of matrices.

    Args:
        weight: `[..., R, C]`, any float dtype, finite.
        block: rows and columns of a block.
        power_of_two: round factors up to powers of two.

    Returns:
        `[..., R, C]` float8_e4m3fn, and `[..., ceil(R / r), ceil(C / c)]` fp32, the multipliers of dequantisation.
    """
    rows, columns = weight.shape[-2:]
    padding = (0, -columns % block[1], 0, -rows % block[0])
    tiles = functional.pad(weight.float(), padding).unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0]))
    scale = tiles.abs().amax((-3, -1)).clamp_(min=AMAX_FLOOR) / E4M3_MAX
    if power_of_two:
        scale = round_up_to_power_of_two(scale)
    codes = (tiles / scale[..., :, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.flatten(-4, -3).flatten(-2, -1)[..., :rows, :columns].contiguous(), scale


def dequantise_blocks(codes: Tensor, scale: Tensor, block: Block = (128, 128), dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of `quantise_blocks`, computed in fp32 and rounded once.

    Args:
        codes: `[..., R, C]` float8_e4m3fn.
        scale: `[..., ceil(R / r), ceil(C / c)]`.
        block: rows and columns of a block.
        dtype: of the result.
    """
    rows, columns = codes.shape[-2:]
    numbers, whole = decode_e4m3(codes), rows // block[0]
    spread = scale.float().repeat_interleave(block[1], -1)[..., :columns]
    numbers[..., : whole * block[0], :].unflatten(-2, (whole, block[0])).mul_(spread[..., :whole, None, :])
    numbers[..., whole * block[0] :, :].mul_(spread[..., whole:, :])
    return numbers.to(dtype)


@dataclass(frozen=True)
class Blocks:
    """How a parameter is kept in FP8: a matrix or a stack `[..., R, C]` of them, each of parts one below the other.

    Parts are tensors of their own in a checkpoint (`gate_proj` above `up_proj`), so that blocks begin anew at each.
    """

    block: Block
    heights: tuple[int, ...]
    """Rows of each part; their sum is R."""

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the factors of `shape` `[..., R, C]`: those of each part one below the other."""
        *lead, _, columns = shape
        return (*lead, self._factors(len(self.heights)), math.ceil(columns / self.block[1]))

    def scale_region(self, region: Index, shape: tuple[int, ...]) -> Index | None:
        """Where the factors of a region of a parameter of `shape` lie; None where its rows do not begin and end with blocks."""
        if len(region) < len(shape) - 1:
            return region
        rows = region[-1]
        assert isinstance(rows, slice)
        start, stop, _ = rows.indices(shape[-2])
        for part, end in enumerate(accumulate(self.heights)):
            if start >= end:
                continue
            first, last = (row - end + self.heights[part] for row in (start, stop))
            if first % self.block[0] or stop > end or (stop < end and last % self.block[0]):
                return None
            before = self._factors(part)
            return (*region[:-1], slice(before + first // self.block[0], before + math.ceil(last / self.block[0])))
        return None

    def numbers(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrices `[..., R, C]` in `dtype`, rounded once from fp32; memory beside them stays small."""
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        width = codes.numel() // max(1, codes.shape[-2])
        for rows, factors in self.strips(max(1, STRIP // max(1, self.block[0] * width))):
            out[..., rows, :] = dequantise_blocks(codes[..., rows, :], scale[..., factors, :], self.block, dtype)
        return out

    def strips(self, many: int | None = None) -> Iterator[tuple[slice, slice]]:
        """Rows that are `many` blocks high, or less where a part ends, and the rows of their factors; None for whole parts."""
        row = factor = 0
        for height in self.heights:
            step = height if many is None else many * self.block[0]
            for first in range(0, height, step):
                size = min(step, height - first)
                blocks = math.ceil(size / self.block[0])
                yield slice(row + first, row + first + size), slice(factor, factor + blocks)
                factor += blocks
            row += height

    def _factors(self, parts: int) -> int:
        """Rows of factors of the first parts."""
        return sum(math.ceil(height / self.block[0]) for height in self.heights[:parts])


def decode_e4m3(codes: Tensor) -> Tensor:
    """The numbers of float8_e4m3fn codes in fp32, in new memory; NaN stays NaN.

    On a CPU torch casts one number after another. The bits of a code, moved to their places in fp16, are the number times
    2^-8, subnormal or not, and from there on everything is vector code: about ten times as fast.
    """
    if codes.device.type != "cpu":
        return codes.float()
    bits = codes.contiguous().view(torch.int8)
    half = bits.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~(1 << 14))  # the shift left a second sign in bit 14
    numbers = half.view(torch.float16).float().mul_(256.0)
    if bits.numel() and int(bits.bitwise_and(127).amax()) == 127:  # the one code whose exponent means no number
        numbers.masked_fill_(codes.isnan(), torch.nan)
    return numbers


def round_up_to_power_of_two(scale: Tensor) -> Tensor:
    """The least power of two that is not below each number; exact, from the bits of fp32.

    Args:
        scale: fp32, positive, normal and finite.
    """
    bits = scale.contiguous().view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
