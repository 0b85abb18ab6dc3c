"""How kernels are cut into programs: data, one row a kernel and bucket of sizes, to be measured anew for other cards.

Every row compiles for Hopper without spilling registers, which a test checks. A kernel's rows are tried in order; the first
whose bound is not below the size is taken.
"""

from __future__ import annotations

from math import inf

SMALL = {"BLOCK_M": 64, "BLOCK_N": 128, "GROUP": 1, "DESCRIPTORS": 1, "num_warps": 4, "num_stages": 4}
LARGE = {"BLOCK_M": 128, "BLOCK_N": 128, "GROUP": 8, "DESCRIPTORS": 1, "num_warps": 8, "num_stages": 4}
"""Products; with `DESCRIPTORS` where the tensor memory accelerator can fetch the codes, by pointers elsewhere."""

TABLE: dict[str, tuple[tuple[float, dict[str, int]], ...]] = {
    # a factor for each row of `a`, and one for 128 of `b`; the size is the number of rows of `a`
    "product": ((64, SMALL), (inf, LARGE)),
    # a factor for each row of both, which takes more registers
    "product_rows": ((64, SMALL), (inf, SMALL | {"GROUP": 16})),
    # the size is the room of one expert
    "masked": ((64, SMALL), (inf, LARGE)),
    "weight_gradient": ((inf, LARGE),),
    "quantise": ((inf, {"ROWS": 32, "num_warps": 4}),),
    "quantise_blocks": ((inf, {"ROWS": 128, "num_warps": 8}),),
    "dequantise": ((inf, {"ROWS": 32, "COLUMNS": 128, "num_warps": 4}),),
    "tokens": ((inf, {"COLUMNS": 64, "num_warps": 4}),),
    "swiglu": ((inf, {"ROWS": 16, "num_warps": 4}),),
    "swiglu_gradient": ((inf, {"ROWS": 8, "num_warps": 4}),),
    # the size is that of a row
    "norm": ((2048, {"num_warps": 4}), (inf, {"num_warps": 8})),
}


def configuration(kernel: str, size: float = inf) -> dict[str, int]:
    """Constants, warps and stages of a kernel for a size."""
    return dict(next(how for bound, how in TABLE[kernel] if size <= bound))
