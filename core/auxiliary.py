"""Auxiliary losses whose gradient is injected where they arise.

A balance loss belongs to one layer. Carrying it to the end of the network would tie layers on different pipeline ranks
together and would be lost or doubled by recomputation; instead a tensor that the layer uses anyway carries the
loss's gradient back, and the value is reported on the side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .contracts import Context


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.like = scale, loss
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.full_like(ctx.like, ctx.scale), None


def attach(carrier: Tensor, loss: Tensor, context: Context, *, name: str, key: Any) -> Tensor:
    """`carrier`, unchanged; its backward pass also sends `context.aux_scale` into the scalar `loss`.

    Args:
        carrier: a tensor that takes part in the model's output.
        loss: the weighted auxiliary loss of one layer, a scalar.
        context: where the value is added up under `name`.
        name: what the loss is called in reports.
        key: who attaches; a recomputed layer does not report twice.
    """
    if context.first((name, key)):
        context.parts[name] = context.parts.get(name, 0) + loss.detach()
    return _Carry.apply(carrier, loss, context.aux_scale)  # type: ignore[return-value]
