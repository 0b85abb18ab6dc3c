"""What multiplies FP8 codes. Each backend computes what `emulation` defines, up to the order of fp32 sums."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ....core.errors import BestiaryError
from ..options import FP8Options
from ..quantize import Quantised, Rule, Tile


class Backend(Protocol):
    """Quantises and multiplies; all products are `a @ b.T`, summed in fp32 and rounded once to `dtype`."""

    name: str
    reason: str
    """Why it was chosen, for people."""

    def quantise(self, x: Tensor, tile: Tile, rule: Rule) -> Quantised:
        """As `quantize.quantise`, bit by bit."""
        ...

    def product(self, a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        """`[M, K]` and `[N, K]` to `[M, N]`."""
        ...

    def grouped(self, a: Quantised, b: Quantised, sizes: list[int], dtype: torch.dtype) -> Tensor:
        """Rows `[M, K]` sorted by expert, `sizes` of each, and `[E, N, K]` to `[M, N]`."""
        ...


def choose(options: FP8Options) -> Backend:
    """The backend of these options, chosen once, when a model is built.

    Raises:
        BestiaryError: `triton` is asked for and not installed.
    """
    from .emulation import Emulation

    if options.backend == "triton":
        try:
            from .kernels import Kernels
        except ImportError as error:
            remedy = "Install it with `pip install 'bestiary[gpu]'`, or set precision.backend = 'emulation'."
            raise BestiaryError(f"precision.backend = 'triton': {error}. {remedy}") from error
        return Kernels("asked for")
    asked = options.backend == "emulation"
    return Emulation(options.accumulation, "asked for" if asked else "no kernel was measured to be faster here")
