"""Weight surgery: how a component makes its weights from those of another one that stood in its slot.

A component declares conversions; the registry carries them out while it loads, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .site import Site


@dataclass(frozen=True)
class Made:
    """A tensor of the new component."""

    tensor: Tensor
    error: float = 0.0
    """Frobenius norm of what was lost, relative to what it was taken from; 0 when the new tensor says the same."""


@dataclass(frozen=True)
class Conversion:
    """The way from another component of the same slot."""

    source: str
    """What the checkpoint's manifest says under `use`."""
    rule: str
    """What is done, for reports."""
    why_not: Callable[[Any, Any, Site], str]
    """From old options, new options and site: why it cannot be done, and what to change; empty when it can."""
    apply: Callable[[Mapping[str, Tensor], Any, Any, Site], Mapping[str, Made]]
    """From the old component's tensors (fp32, by its own names) and both options: those of the new one. What it leaves out starts fresh."""


def relative(lost: Tensor, whole: Tensor) -> float:
    """Frobenius norm of `lost` as a share of that of `whole`."""
    norm = float(whole.double().norm())
    return float(lost.double().norm()) / norm if norm else 0.0


def rotary_order(width: int, before: bool, after: bool) -> list[int]:
    """Which old row of a head each new one is, when rotary pairs are neighbours (True) or half a head apart (False)."""
    halves = [*range(0, width, 2), *range(1, width, 2)]
    if before == after:
        return list(range(width))
    return halves if before else [halves.index(row) for row in range(width)]
