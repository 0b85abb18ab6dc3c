"""How evenly experts are used: the balance loss and the figures that are reported."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def expert_load(experts: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Tokens per expert: `[T, K]` ids to `[E]` int64; tokens where `valid` `[T]` is False do not count."""
    chosen = experts if valid is None else experts[valid]
    return torch.bincount(chosen.flatten(), minlength=count)


def sequence_load(experts: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """The same within each sequence: `[B, S, K]` ids to `[B, E]`; `valid` is `[B, S]`."""
    chosen = one_hot(experts, count).sum(dim=2)
    return (chosen if valid is None else chosen * valid[..., None]).sum(dim=1)


def max_violation(load: Tensor) -> float:
    """`(max load - mean load) / mean load` (Wang et al., 2024): 0 when every expert has equal work."""
    load = load.double()
    mean = load.mean()
    return float((load.max() - mean) / mean) if mean > 0 else 0.0


def balance_loss(scores: Tensor, experts: Tensor, valid: Tensor | None = None) -> Tensor:
    """DeepSeek-V3's balance loss without its weight, averaged over sequences (equations 17 to 20).

    `sum_i f_i P_i` with `f_i = E / (K T) * (tokens of the sequence routed to i)` and `P_i` the mean normalised
    affinity. The counted experts are those actually routed to; uniform routing gives 1.

    Args:
        scores: `[B, S, E]` affinities, not negative.
        experts: `[B, S, K]` ids.
        valid: `[B, S]` bool, False for padding.
    """
    count, k = scores.shape[-1], experts.shape[-1]
    use = torch.ones(scores.shape[:2], dtype=scores.dtype, device=scores.device) if valid is None else valid.to(scores.dtype)
    length = use.sum(dim=1).clamp(min=1)
    routed = one_hot(experts, count).sum(dim=2).to(scores.dtype)
    f = torch.einsum("bse,bs->be", routed, use) * (count / (k * length))[:, None]
    p = torch.einsum("bse,bs->be", scores / (scores.sum(dim=-1, keepdim=True) + 1e-20), use) / length[:, None]
    return (f * p).sum(dim=-1).mean()
