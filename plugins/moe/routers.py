"""The routers of DeepSeek-V2 and DeepSeek-V3. All arithmetic is fp32, from the gate's product on.

Which rule a model was trained with matters: masking unselected groups with 0 instead of -inf, or ranking groups by
their best instead of their two best experts, gives the same shapes and another model. Of exactly equal scores `topk` may take
any, where DeepSeek's reference kernels take the first; to say which would cost a stable sort, several times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import decode
from .backend import chosen
from .hookspecs import RouterSite, Routing
from .options import RouterOptions, SigmoidGroupOptions, SoftmaxGroupOptions, SoftmaxOptions


class Gate(nn.Module):
    """The gate's matrix `[E, D]` and its fp32 product; routers differ in what follows."""

    def __init__(self, options: RouterOptions, site: RouterSite) -> None:
        super().__init__()
        self.options, self.k = options, site.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(site.n_routed_experts, site.hidden_size))

    def logits(self, x: Tensor) -> Tensor:
        """`[T, D] -> [T, E]`, at least fp32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype))


class SigmoidGroup(Gate):
    """DeepSeek-V3's router (equations 12 to 16, section 2.1.2).

    `s = sigmoid(gate x)` are the affinities; `s + b` decides which experts are chosen, `s` alone what they weigh. A group
    ranks by the sum of its two best `s + b`; groups not kept are masked with -inf, since `s + b` may be negative.
    """

    def __init__(self, options: SigmoidGroupOptions, site: RouterSite) -> None:
        super().__init__(options, site)
        self.rule = options
        self.groups, self.kept, self.speed = options.n_group, options.topk_group, options.bias_update_speed
        self.kernels = chosen(site.kernels)
        self.register_buffer("e_score_correction_bias", torch.empty(site.n_routed_experts))

    def forward(self, x: Tensor) -> Routing:
        """`[T, D]` to `Routing`."""
        if self.kernels is not None:
            return self.kernels.route(self.logits(x), self.e_score_correction_bias, self.k, self.rule, scores=self.training)
        few = decode.route_sigmoid_group(x, self.weight, self.e_score_correction_bias, self.k, self.rule)
        if few is not None:
            return few
        scores = self.logits(x).sigmoid()
        choice = scores.detach() + self.e_score_correction_bias
        if self.groups > 1:
            rank = choice.unflatten(-1, (self.groups, -1)).topk(2, dim=-1).values.sum(dim=-1)
            choice = keep_groups(choice, rank, self.kept, float("-inf"))
        experts = choice.topk(self.k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.options.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(weights * self.options.routed_scaling_factor, experts, scores)

    def adjust(self, option: str, value: float) -> None:
        """Changes `bias_update_speed`."""
        assert option == "bias_update_speed"
        self.speed = value

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """Moves each expert's bias by `bias_update_speed` against the sign of its excess load (section 2.1.2)."""
        load = load.to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += self.speed * torch.sign(load.mean() - load)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Casts of the whole model leave the bias in at least fp32."""
        before = self.e_score_correction_bias
        super()._apply(fn, recurse)
        after = self.e_score_correction_bias
        wide = torch.promote_types(after.dtype, torch.float32)
        if after.dtype != wide:  # the value from before the cast, which has rounded it
            self.e_score_correction_bias = before.to(after.device, wide)
        return self


class Softmax(Gate):
    """The K most probable experts; DeepSeek-V2-Lite's `greedy`."""

    def __init__(self, options: SoftmaxOptions, site: RouterSite) -> None:
        super().__init__(options, site)

    def forward(self, x: Tensor) -> Routing:
        """`[T, D]` to `Routing`."""
        scores = self.logits(x).softmax(dim=-1)
        experts = self.choice(scores.detach()).topk(self.k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.options.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(weights * self.options.routed_scaling_factor, experts, scores)

    def choice(self, scores: Tensor) -> Tensor:
        """What the experts are ranked by, `[T, E]`."""
        return scores


class SoftmaxGroup(Softmax):
    """DeepSeek-V2's `group_limited_greedy`: groups rank by their most probable expert."""

    def __init__(self, options: SoftmaxGroupOptions, site: RouterSite) -> None:
        super().__init__(options, site)
        self.groups, self.kept = options.n_group, options.topk_group

    def choice(self, scores: Tensor) -> Tensor:
        return keep_groups(scores, scores.unflatten(-1, (self.groups, -1)).amax(dim=-1), self.kept, 0.0)


def keep_groups(choice: Tensor, rank: Tensor, kept: int, mask: float) -> Tensor:
    """`choice` `[T, E]` with `mask` in all groups but the `kept` best by `rank` `[T, groups]`."""
    best = rank.topk(kept, dim=-1).indices
    outside = torch.ones_like(rank, dtype=torch.bool).scatter(-1, best, False)
    return choice.unflatten(-1, (rank.shape[-1], -1)).masked_fill(outside.unsqueeze(-1), mask).flatten(-2)
