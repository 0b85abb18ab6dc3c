"""How large the kernels' tiles are: sizes that compile for sm_90 without spilling registers, which the tests check."""

from __future__ import annotations

import torch
import triton

Configuration = dict[str, int]

PRODUCT: dict[bool, Configuration] = {
    True: {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP": 16, "num_warps": 8, "num_stages": 3},
    False: {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 16, "num_warps": 4, "num_stages": 1},
}
"""Rows (M) and columns (N) of a tile of results and the numbers (K) that a step adds up, by whether numbers have 16 bits; `GROUP` blocks
of rows are computed side by side, so that the cache holds what they share. Products of fp32 are done without tensor cores."""
PRODUCT_FEW: dict[bool, Configuration] = PRODUCT | {
    True: {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP": 16, "num_warps": 4, "num_stages": 4}
}
"""The same where experts have `FEW` rows and less on average: the matrices are what takes time, and two programs share a multiprocessor."""
FEW = 64
WEIGHT_GRADIENT: dict[bool, Configuration] = PRODUCT
"""The same, M and N being rows and columns of an expert's matrix and K its tokens."""
COPIES: Configuration = {"BLOCK": 64, "num_warps": 4}
"""Copies of tokens that a program of a plan looks at."""
EXPERTS: Configuration = {"BLOCK": 16, "STEP": 128, "num_warps": 4}
"""Experts that a program of a plan adds up, and blocks of copies of a step."""


def route(width: int) -> Configuration:
    """Tokens of a program of the router with so many experts, padding included: a warp keeps two rows of 256 in its registers."""
    return {"TOKENS": max(1, min(2, 512 // width)), "num_warps": max(1, width // 512)}


def columns(itemsize: int) -> Configuration:
    """Columns of a row that a program copies or sums up: 16 bytes a thread."""
    return {"BLOCK": 2048 // itemsize, "num_warps": 4}


def short(dtype: torch.dtype) -> bool:
    """Whether numbers of this type have 16 bits."""
    return dtype.itemsize == 2


@triton.constexpr_function
def padded(width: int) -> int:
    """The smallest power of two that holds `width`."""
    return 1 << (width - 1).bit_length()
