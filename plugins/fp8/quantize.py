"""Numbers to FP8 codes with a factor per tile, and back: the definition, in plain torch, that every backend meets bit by bit.

    amax = max |x| of the tile         s = max(amax, floor) / 448, rounded up to a power of two if asked
    code = e4m3(x / s), to nearest, ties to even, saturating

E4M3's largest number is 448, E5M2's 57344. A tile at the edge of a matrix may be smaller; it counts as padded with zeros.
A tile that holds NaN or infinity becomes NaN throughout, so that a broken step stays visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...core.blocks import decode_e4m3, round_up_to_power_of_two

Tile = tuple[int | None, int | None]
"""Rows and columns that share a factor; None for all."""

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
Convention = Literal["deepseek-v3", "deepgemm", "te"]


@dataclass(frozen=True)
class Rule:
    """How a tile's factor is found and applied."""

    floor: float = 1e-4
    """Least amax."""
    power_of_two: bool = True
    format: Literal["e4m3", "e5m2"] = "e4m3"
    convention: Convention = "deepseek-v3"

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.format]


@dataclass(frozen=True)
class Quantised:
    """Codes `[..., R, C]` in FP8 and factors `[..., ceil(R / r), ceil(C / c)]` fp32 for tiles of r rows and c columns."""

    codes: Tensor
    scale: Tensor
    tile: tuple[int, int]
    turned: Tensor | None = None
    """The codes `[..., C, R]` of the transposed matrix, contiguous, if they were written, too."""

    @property
    def T(self) -> Quantised:
        """The transposed matrix, exactly, without copying."""
        codes, turned = (self.codes.mT, None) if self.turned is None else (self.turned, self.codes)
        return Quantised(codes, self.scale.mT, (self.tile[1], self.tile[0]), turned)

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`[..., R, C]`: code times factor in fp32, rounded once."""
        if self.codes.mT.is_contiguous() and not self.codes.is_contiguous():
            return self.T.values(dtype).mT
        numbers = decode_e4m3(self.codes) if self.codes.dtype == torch.float8_e4m3fn else self.codes.float()
        tiles = _tiles(numbers, self.tile)
        return _matrix((tiles * self.scale[..., :, None, :, None]).to(dtype), self.codes.shape)


def quantise(x: Tensor, tile: Tile, rule: Rule) -> Quantised:
    """Codes and factors of matrices.

    Args:
        x: `[..., R, C]`, any float dtype. NaN and infinity make their tile NaN.
        tile: rows and columns that share a factor.
        rule: floor, rounding and format.
    """
    shape = sizes(x, tile)
    tiles = _tiles(x.float(), shape)
    amax = tiles.abs().amax((-3, -1))
    largest = torch.finfo(rule.dtype).max
    inverse = None
    if rule.convention == "te":
        inverse = torch.where(amax == 0, 1.0, largest / amax)
        scale = inverse.reciprocal()
    else:
        scale = amax.clamp(min=rule.floor) / largest
    if rule.power_of_two:
        rounded = round_up_to_power_of_two(scale)
        scale, inverse = torch.where(scale.isfinite(), rounded, torch.nan), None
    else:
        scale = torch.where(scale.isfinite(), scale, torch.nan)
    if rule.convention != "deepseek-v3":
        inverse = scale.reciprocal() if inverse is None else inverse
        scaled = tiles * inverse[..., :, None, :, None]
        scaled = torch.where(scale.isnan()[..., :, None, :, None], torch.nan, scaled)
    else:
        scaled = tiles / scale[..., :, None, :, None]
    codes = scaled.clamp_(-largest, largest).to(rule.dtype)
    return Quantised(_matrix(codes, x.shape).contiguous(), scale, shape)


def sizes(x: Tensor, tile: Tile) -> tuple[int, int]:
    """Rows and columns of a tile of `[..., R, C]`."""
    return tile[0] or max(x.shape[-2], 1), tile[1] or max(x.shape[-1], 1)


def _tiles(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """`[..., R, C]` to `[..., ceil(R / r), r, ceil(C / c), c]`, padded with zeros where it must be."""
    rows, columns = x.shape[-2:]
    if rows % tile[0] or columns % tile[1]:
        x = functional.pad(x, (0, -columns % tile[1], 0, -rows % tile[0]))
    down, across = (x.shape[-2] // tile[0], x.shape[-1] // tile[1])
    return x.reshape(*x.shape[:-2], down, tile[0], across, tile[1])


def _matrix(tiles: Tensor, shape: torch.Size) -> Tensor:
    down, r, across, c = tiles.shape[-4:]
    return tiles.reshape(*shape[:-2], down * r, across * c)[..., : shape[-2], : shape[-1]]
