"""SwiGLU before an FP8 layer: `silu(gate) * up`, times the routing weight of each row, in plain torch, the definition.

Of what SwiGLU reads the backward pass keeps codes, and computes everything else again from them (technical report, section 3.3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.layers.swiglu import silu_product, silu_product_gradients, swiglu, swiglu_gradient
from .quantize import Quantised


@dataclass(frozen=True)
class Gated:
    """What SwiGLU reads."""

    inputs: tuple[Tensor, ...]
    """Gate and up, `[..., I]` each, or one `[..., 2 I]` of both, gate first."""
    weights: Tensor | None = None
    """`[..., 1]`, the routing weight of each row."""

    @property
    def width(self) -> int:
        """`I`"""
        return self.inputs[0].shape[-1] * len(self.inputs) // 2

    def rows(self) -> Gated:
        """The same as matrices `[M, ...]`."""
        flat = tuple(x.reshape(-1, x.shape[-1]) for x in self.inputs)
        return Gated(flat, None if self.weights is None else self.weights.reshape(-1, 1))

    def hidden(self) -> Tensor:
        """`[..., I]`"""
        return self._product() if self.weights is None else self._product() * self.weights

    def gradients(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the weights and of each input, from the gradient of `hidden()`."""
        to_weights = None
        if self.weights is not None:
            to_weights = (grad * self._product()).sum(-1, keepdim=True)
            grad = grad * self.weights
        if len(self.inputs) == 2:
            return to_weights, *silu_product_gradients(grad, *self.inputs)
        return to_weights, swiglu_gradient(grad, self.inputs[0])

    def _product(self) -> Tensor:
        return swiglu(self.inputs[0]) if len(self.inputs) == 1 else silu_product(*self.inputs)


@dataclass(frozen=True)
class Kept:
    """What the backward pass keeps of `Gated`: inputs as they are, or as codes in tiles of their rows."""

    inputs: tuple[Tensor | Quantised, ...]
    weights: Tensor | None = None

    def numbers(self, values: Callable[[Quantised, torch.dtype], Tensor]) -> Gated:
        """Decoded by a backend's function."""
        return Gated(tuple(x if isinstance(x, Tensor) else values(x, torch.bfloat16) for x in self.inputs), self.weights)
