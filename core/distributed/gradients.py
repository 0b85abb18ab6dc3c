"""Sums of gradients over ranks, and their norm, in which every parameter counts once.

Losses are sums divided by counts of the whole step, so gradients are added and never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

BUCKET = 1 << 24
"""Numbers that are summed in one call."""


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], group: Any) -> None:
    """Adds up gradients over a group, in place; one that a rank does not have counts as zeros there. Of distributed ones, the parts
    that the ranks have, which must be the same."""
    if group is None:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(local(parameter.grad))
        if sum(grad.numel() for grad in bucket) >= BUCKET:
            _sum(bucket, group)
            bucket = []
    _sum(bucket, group)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_gradients(parameters: Mapping[str, nn.Parameter], limit: float, owned: Mapping[str, bool]) -> float:
    """Scales all gradients of all ranks so that their norm is at most `limit`; returns the norm before.

    Args:
        parameters: of this rank, by name.
        limit: the largest norm.
        owned: whether this rank counts a parameter that others hold as well; parts of one parameter are counted where they lie.
    """
    grads = {name: local(p.grad) for name, p in parameters.items() if p.grad is not None}
    first = next(iter(grads.values()), torch.zeros(()))
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for name, grad in grads.items():
        if owned.get(name, True):
            total += torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)).double().square()
    dist.all_reduce(total)
    norm = float(total.sqrt())
    factor = limit / (norm + 1e-6)
    if factor < 1:
        for grad in grads.values():
            grad.mul_(factor)
    return norm


def _sum(grads: list[Tensor], group: Any) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for grad in grads:
        by_dtype.setdefault(grad.dtype, []).append(grad)
    for same in by_dtype.values():
        flat = torch.cat([grad.flatten() for grad in same])
        dist.all_reduce(flat, group=group)
        for grad, part in zip(same, flat.split([grad.numel() for grad in same]), strict=True):
            grad.copy_(part.view_as(grad))
