"""Codes of tensors that several layers read: the first layer quantises, the others find what it made.

So do a query's and a latent's projections of the same rows, and the two halves of SwiGLU; they also keep one copy for the backward pass.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .quantize import Quantised


class Memo:
    """Codes by the very tensor that they were made of, for as long as that lives and is not written to."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def get(self, x: Tensor) -> Quantised | None:
        """The codes of `x` as a matrix `[M, K]`, if they are known."""
        known = self._known.get(x)
        return known[1] if known is not None and known[0] == _version(x) else None

    def put(self, x: Tensor, codes: Quantised) -> None:
        """Remembers the codes of `x`."""
        if (version := _version(x)) is not None:
            self._known[x] = (version, codes)


def _version(x: Tensor) -> int | None:
    """How often `x` was written to; None where torch does not count."""
    return None if x.is_inference() else x._version
