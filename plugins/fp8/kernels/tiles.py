"""What kernels share: numbers of a tile to codes, and back, on the device; bit by bit as `quantize` defines."""

# pyright: reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..quantize import Rule

TILE = 128
"""Numbers that share a factor."""


@triton.jit
def to_codes(values, floor, LARGEST: tl.constexpr, POWER_OF_TWO: tl.constexpr, AXIS: tl.constexpr):
    """fp32 numbers as they are rounded to codes, and the factors of their tiles, which lie along `AXIS`; None for one tile of both axes."""
    magnitude = tl.abs(values)
    bad = ((values != values) | (magnitude == float("inf"))).to(tl.int32)
    if AXIS is None:
        amax = tl.max(tl.max(magnitude, axis=1, keep_dims=True), axis=0, keep_dims=True)
        spoilt = tl.max(tl.max(bad, axis=1, keep_dims=True), axis=0, keep_dims=True)
    else:
        amax, spoilt = tl.max(magnitude, axis=AXIS, keep_dims=True), tl.max(bad, axis=AXIS, keep_dims=True)
    factor = tl.div_rn(tl.maximum(amax, floor), tl.full(amax.shape, LARGEST, tl.float32))
    if POWER_OF_TWO:
        bits = factor.to(tl.int32, bitcast=True)
        factor = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    factor = tl.where(spoilt > 0, float("nan"), factor)
    scaled = tl.div_rn(values, tl.broadcast_to(factor, values.shape))
    return tl.where(spoilt > 0, float("nan"), tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)), factor


@triton.jit
def numbers(codes, factor, dtype: tl.constexpr):
    """What codes stand for, rounded to `dtype`, in fp32."""
    return (codes.to(tl.float32) * factor).to(dtype).to(tl.float32)


@triton.jit
def program_of(count, columns, GROUP: tl.constexpr):
    """Row and column of this program's block of a matrix of `count x columns` blocks.

    Blocks are taken in strips of `GROUP` rows, column by column, so that programs that run together read the same parts of both
    factors of a product, which the L2 cache then holds.
    """
    program = tl.program_id(0)
    strip = program // (GROUP * columns)
    height = tl.minimum(count - strip * GROUP, GROUP)
    inside = program - strip * GROUP * columns
    return strip * GROUP + inside % height, inside // height


def knows(rule: Rule) -> bool:
    """Whether `to_codes` follows a convention: it divides by the factor."""
    return rule.convention == "deepseek-v3" or (rule.convention == "deepgemm" and rule.power_of_two)


def descriptors_fit(*matrices: Tensor) -> bool:
    """Whether Hopper's tensor memory accelerator can fetch tiles of contiguous codes: rows begin at multiples of 16 bytes."""
    aligned = all(x.shape[-1] % 16 == 0 and x.data_ptr() % 16 == 0 for x in matrices)
    return aligned and (not matrices[0].is_cuda or torch.cuda.get_device_capability(matrices[0].device) >= (9, 0))


def described(codes: Tensor, rows: int) -> TensorDescriptor:
    """Of a matrix `[R, C]`, in tiles of so many rows and `TILE` columns; zeros lie beyond its edges."""
    return TensorDescriptor.from_tensor(codes, [rows, TILE])
