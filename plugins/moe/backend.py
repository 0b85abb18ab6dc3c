"""What computes a layer: torch, or kernels where its option asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import BestiaryError, Problem

if TYPE_CHECKING:
    from .kernels.launch import Kernels


def chosen(kernels: str) -> Kernels | None:
    """What the option `kernels` names: None for `torch`.

    Raises:
        BestiaryError: Triton is not installed.
    """
    if kernels == "torch":
        return None
    try:
        from .kernels.launch import Kernels
    except ImportError as error:
        remedy = "Install it with `pip install 'bestiary[gpu]'`, or set block.ffn.kernels = 'torch'."
        raise BestiaryError(Problem(f"{error}.", "block.ffn.kernels = 'triton'", remedy)) from error
    return Kernels()
