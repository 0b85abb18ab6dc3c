"""What enters an FP8 layer and becomes codes there: a matrix, or what SwiGLU makes of its inputs.

Both go through the layer's one autograd function, which sees their tensors and returns a gradient for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .e5m6 import Packed, keep_e5m6
from .quantize import Quantised
from .recipe import Recipe
from .swiglu import Gated, Kept

Saved = Literal["fp8", "bf16", "e5m6"]
"""What is kept of a layer's input."""


@dataclass(frozen=True)
class Entered:
    """What a layer multiplies, and what its backward pass needs."""

    rows: Quantised
    """`[M, K]`"""
    source: Tensor | Quantised | Packed
    """The rows as the weight gradient reads them."""
    before: Kept | None = None
    """What SwiGLU's gradients are computed from."""


@torch.no_grad()
def enter(x: Tensor | Gated, recipe: Recipe, saved: Saved) -> Entered:
    """Quantises what enters, and says what is kept of it."""
    if isinstance(x, Gated):
        made = recipe.gated(x.rows())
        return Entered(made.rows, made.rows if made.numbers is None else made.numbers, made.before)
    rows, numbers = recipe.activation(x), x.reshape(-1, x.shape[-1])
    if saved == "e5m6":
        return Entered(rows, keep_e5m6(numbers, recipe.options.floor))
    return Entered(rows, rows if saved == "fp8" else numbers)


def tensors(x: Tensor | Gated) -> tuple[Tensor | None, ...]:
    """What autograd sees of an input, as matrices."""
    if isinstance(x, Tensor):
        return (x.reshape(-1, x.shape[-1]),)
    rows = x.rows()
    return (rows.weights, *rows.inputs)


def outline(x: Tensor | Gated, width: int) -> Tensor | None:
    """A layer's result `[..., width]` without values, of an input without any; None where there are values to compute with."""
    first = x if isinstance(x, Tensor) else x.inputs[0]
    return first.new_empty(*first.shape[:-1], width) if first.is_meta else None


def leave(recipe: Recipe, before: Kept | None, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `tensors(x)` from that of the rows."""
    return (grad,) if before is None else recipe.backend.gated_gradients(before, grad)


def keep(ctx: Any, x: Entered, blocks: Quantised) -> None:
    """Saves what entered and the weight's codes, transposed, for the backward pass."""
    before = () if x.before is None else (x.before.weights, *x.before.inputs)
    items = (x.source, blocks.T, *before)
    ctx.makers = [_maker(item) for item in items]
    ctx.save_for_backward(*(part for item in items for part in _parts(item)))


def kept(ctx: Any) -> tuple[Tensor | Quantised | Packed, Quantised, Kept | None]:
    """What `keep` saved: the rows, the transposed weight's codes, and what SwiGLU read."""
    saved: Iterator[Any] = iter(ctx.saved_tensors)
    items: list[Any] = [next(saved) if make is None else make(next(saved), next(saved)) for make in ctx.makers]
    source, turned, *before = items
    return source, turned, Kept(tuple(before[1:]), before[0]) if before else None


def _maker(item: Tensor | Quantised | Packed | None) -> Callable[[Tensor, Tensor], Quantised | Packed] | None:
    """What puts an item together again; None for a tensor, which needs nothing."""
    if isinstance(item, Packed):
        return partial(Packed, columns=item.columns)
    return partial(Quantised, tile=item.tile) if isinstance(item, Quantised) else None


def _parts(item: Tensor | Quantised | Packed | None) -> Sequence[Tensor | None]:
    if isinstance(item, Packed):
        return item.data, item.scale
    return (item.codes, item.scale) if isinstance(item, Quantised) else (item,)
