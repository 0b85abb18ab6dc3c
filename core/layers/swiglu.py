"""SwiGLU (Shazeer, 2020), the feed-forward layer of dense blocks and of experts: `down(silu(gate x) * up x)`.

The product keeps nothing but its two inputs for the backward pass; `silu` is computed again there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributed.tensor_ranks import ALONE, TensorRanks
from ..native import linear as native
from ..site import Site


class SwiGLU(nn.Module):
    """`down(silu(gate x) * up x)`: `[..., D] -> [..., D]`"""

    tensor_ranks = ALONE

    def __init__(self, site: Site, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = site.linear(site.hidden_size, intermediate_size)
        self.up_proj = site.linear(site.hidden_size, intermediate_size)
        self.down_proj = site.linear(intermediate_size, site.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        (x,) = self.tensor_ranks.enter(x)
        return self.tensor_ranks.leave(self._here(x))

    def share_matrices(self, ranks: TensorRanks) -> None:
        """From now on a part of the hidden layer is here."""
        self.tensor_ranks = ranks

    def _here(self, x: Tensor) -> Tensor:
        """What the hidden numbers that are here add to the result."""
        few = native.swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        if few is not None:
            return few
        return self.down_proj.gated(self.gate_proj(x), self.up_proj(x))


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    return _Gated.apply(gate, up)  # type: ignore[return-value]


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., 2 I]`, gate first, to `[..., I]`."""
    return _GatedHalves.apply(gate_up)  # type: ignore[return-value]


class _Gated(torch.autograd.Function):
    """`silu(gate) * up` of two tensors."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return silu_product_gradients(grads[0], *ctx.saved_tensors)


class _GatedHalves(torch.autograd.Function):
    """`silu(gate) * up` of the two halves of one tensor; both gradients are written into one."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return swiglu_gradient(grads[0], *ctx.saved_tensors)


def silu_product_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Of `gate` and `up`, from the gradient of `silu_product(gate, up)`."""
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def swiglu_gradient(grad: Tensor, gate_up: Tensor) -> Tensor:
    """Of `gate_up`, from the gradient of `swiglu(gate_up)`."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    to_gate, to_up = out.chunk(2, dim=-1)
    torch.mul(grad, F.silu(gate), out=to_up)
    torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
    return out
