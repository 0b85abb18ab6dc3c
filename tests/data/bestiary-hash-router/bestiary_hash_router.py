"""Hash routing: a fixed random projection of the token picks its experts; nothing is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bestiary.core.component import Component, Options
from bestiary.core.hookspecs import hookimpl
from bestiary.plugins.moe.hookspecs import RouterSite, Routing

BESTIARY_API = 1


class HashOptions(Options):
    seed: int = 0
    """Changes which tokens share an expert."""


class HashRouter(nn.Module):
    """`[T, D]` to K experts of equal weight."""

    def __init__(self, options: HashOptions, site: RouterSite) -> None:
        super().__init__()
        self.seed, self.shape, self.k = options.seed, (site.hidden_size, site.n_routed_experts), site.num_experts_per_tok

    def forward(self, x: Tensor) -> Routing:
        generator = torch.Generator().manual_seed(self.seed)
        projection = torch.randn(self.shape, generator=generator, device="cpu").to(x)
        experts = (x.detach() @ projection).topk(self.k, dim=-1).indices
        return Routing(torch.full(experts.shape, 1 / self.k, device=x.device), experts)


@hookimpl
def bestiary_router() -> Component:
    return Component("hash", HashOptions, HashRouter, summary="A fixed random projection picks the experts.")
