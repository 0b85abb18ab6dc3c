"""How large the kernels' tiles are: sizes that compile for sm_90 without spilling registers, which the tests check."""

from __future__ import annotations

import torch
import triton

Configuration = dict[str, int]

PAGE = 64
"""Positions of a page of the cache."""

FORWARD: dict[bool, Configuration] = {
    True: {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    False: {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
}
"""Queries (M) and keys (N) of a step, by whether numbers have 16 bits; products of fp32 are done without tensor cores."""
QUERY_GRADIENT: dict[bool, Configuration] = FORWARD | {False: {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1}}
KEY_GRADIENT: dict[bool, Configuration] = QUERY_GRADIENT | {True: {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}}
DECODE: dict[bool, Configuration] = {
    True: {"BLOCK_H": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    False: {"BLOCK_H": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
}
"""Heads and positions of a step of decoding, by whether numbers have 16 bits."""
DECODE_FEW: dict[bool, Configuration] = DECODE | {True: {"BLOCK_H": 16, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}}
"""The same for `FEW` heads and less, which do not fill a product of Hopper's."""
FEW = 16


@triton.constexpr_function
def padded(width: int) -> int:
    """The width of a tile that holds `width` columns: a power of two, and as many as a product needs."""
    return 1 << max(4, (width - 1).bit_length())


def short(dtype: torch.dtype) -> bool:
    """Whether numbers of this type have 16 bits."""
    return dtype.itemsize == 2
