"""The mixture of experts: `y = shared(x) + sum_k w_k expert_k(x)` (DeepSeek-V3, equation 12).

The forward pass is the composition of four phases: *route* picks experts, *dispatch* sorts token copies by expert, *experts* computes
and weighs, *combine* sums the results of each token. Where several ranks share the experts, rows travel before and after *experts*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ...core.auxiliary import attach
from ...core.contracts import Context, GroupedProduct, Reduce
from ...core.exchange import Coded, Exchange, Steps, Transport, coded_gradient, finish
from ...core.layers.swiglu import SwiGLU
from ...core.site import Site
from . import decode
from .backend import chosen
from .balance import balance_loss, expert_load, max_violation, sequence_load
from .dispatch import TORCH, Dispatched, Moves, combine, dispatch
from .hookspecs import Router, Routing
from .options import MoEOptions, router_site
from .travel import arrive, leave

if TYPE_CHECKING:
    from ...core.distributed.experts import ExpertRanks


class Experts(nn.Module):
    """All routed experts, each a SwiGLU, as two stacked linear layers."""

    def __init__(self, experts: int, intermediate_size: int, site: Site) -> None:
        super().__init__()
        self.gate_up_proj = site.grouped(experts, site.hidden_size, 2 * intermediate_size)
        self.down_proj = site.grouped(experts, intermediate_size, site.hidden_size)

    def multiply_by(self, product: GroupedProduct) -> None:
        """Offers both layers other code for their products."""
        self.gate_up_proj.multiply_by(product)
        self.down_proj.multiply_by(product)

    def forward(self, sent: Dispatched) -> Tensor:
        """Rows `[R, D]` to weighted outputs `[R, D]`; the weight goes on the hidden layer, where it is narrow."""
        out = self.down_proj.gated(self.gate_up_proj(sent.rows, sent.counts), sent.weights, sent.counts)
        codec = self.down_proj.wire.gradients
        return out if codec is None else coded_gradient(out, codec)

    def ways(self, transport: Transport) -> tuple[Coded, Coded]:
        """To these experts and home again: rows as codes there, and gradients of results back, where the layers' `wire` has some."""
        return Coded(transport, self.gate_up_proj.wire.inputs), Coded(transport.back, None, self.down_proj.wire.gradients)


class MixtureOfExperts(nn.Module):
    """`[B, S, D] -> [B, S, D]`"""

    load: Tensor

    def __init__(self, options: MoEOptions, site: Site) -> None:
        super().__init__()
        self.options, self.count, self.k = options, options.n_routed_experts, options.num_experts_per_tok
        self.layer, self.aux_loss_alpha = site.layer, options.aux_loss_alpha
        self.gate = site.child(options.router, router_site(options, site))
        self.experts = Experts(self.count, options.intermediate_size, site)
        self.moves: Moves = TORCH
        if (kernels := chosen(options.kernels)) is not None:
            self.moves = kernels
            self.experts.multiply_by(kernels.grouped)
        shared = options.n_shared_experts * options.intermediate_size
        self.shared_experts = SwiGLU(site, shared) if shared else None
        self.ranks: ExpertRanks | None = None
        self.register_buffer("load", torch.zeros(self.count, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.ranks is not None:
            return finish(self.steps(x, context))
        routing = self.route(x, context)
        if (few := self._few(x, routing)) is not None:
            return few
        sent = self.dispatch(x.flatten(0, -2), routing)
        routed = self.combine(self.experts(sent), sent).view_as(x)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    def share_experts(self, ranks: ExpertRanks) -> None:
        """From now on the experts of `ranks` together are this layer's."""
        self.ranks = ranks

    def steps(self, x: Tensor, context: Context) -> Steps:
        """`forward` over all ranks that share the experts: it stops while rows travel to their experts, and while they come back."""
        assert self.ranks is not None
        here = self.count // self.ranks.size
        leaving = leave(self.route(x, context), self.ranks.size, here, x.dtype)
        rows = leaving.copies.spread(x.flatten(0, -2))
        shared = () if self.shared_experts is None else (self.shared_experts(x),)
        way = self.ranks.meet(leaving.counts)
        there, home = self.experts.ways(way) if self.ranks.codes else (way, way.back)
        (rows, weights, experts), shared = yield Exchange((rows, leaving.weights, leaving.experts), (there, way, way), shared)
        sent, copies = arrive(rows, experts, weights, here, self.experts.gate_up_proj.row_multiple, self.moves)
        (back,), shared = yield Exchange((copies.gather(self.experts(sent)),), (home,), shared)
        routed = leaving.copies.gather(back).view_as(x)
        return routed + shared[0] if shared else routed

    def route(self, x: Tensor, context: Context) -> Routing:
        """Chooses experts, counts the load, and attaches the balance loss: `[B, S, D]` to `Routing` of `T = B * S`."""
        routing = cast(Router, self.gate)(x.flatten(0, -2))
        if self.training and not x.is_meta:
            valid = context.valid
            if context.first((id(self), "load")):
                self.load += expert_load(routing.experts, self.count, None if valid is None else valid.flatten())
            if self.aux_loss_alpha and routing.scores is not None:
                routing.weights = self._with_balance_loss(routing, x.shape[:2], context)
        elif context.observed is not None:
            context.observed[f"{self.layer}.load"] = sequence_load(routing.experts.unflatten(0, x.shape[:2]), self.count, context.valid)
        return routing

    def dispatch(self, x: Tensor, routing: Routing) -> Dispatched:
        """Copies each of `[T, D]` once per chosen expert and sorts the copies by expert."""
        return dispatch(x, routing, self.count, multiple=self.experts.gate_up_proj.row_multiple, moves=self.moves)

    def combine(self, rows: Tensor, sent: Dispatched) -> Tensor:
        """Sums each token's weighted copies: `[R, D]` sorted by expert to `[T, D]`."""
        return combine(rows, sent, moves=self.moves)

    def _few(self, x: Tensor, routing: Routing) -> Tensor | None:
        """`forward` for a few tokens when decoding on a CPU, where a kernel is to be had for it."""
        if self.options.kernels != "torch":
            return None
        stacks = (self.experts.gate_up_proj.weight, self.experts.down_proj.weight)
        routed = decode.experts(x.flatten(0, -2), routing, *stacks)
        if routed is None:
            return None
        routed = routed.view_as(x)
        return routed if self.shared_experts is None else routed + self.shared_experts(x)

    @torch.no_grad()
    def after_step(self, reduce: Reduce) -> Mapping[str, float | Tensor]:
        """Balances on the load of the step just taken, over all ranks, and forgets it; reports MaxVio."""
        load = reduce(self.load.clone())
        self.load.zero_()
        if not load.sum():
            return {}
        if hasattr(self.gate, "balance"):
            cast(Router, self.gate).balance(load)
        return {"max_vio": max_violation(load), "load": load}

    def adjust(self, option: str, value: float) -> None:
        """Changes `aux_loss_alpha`, or an option of the router."""
        if option == "aux_loss_alpha":
            self.aux_loss_alpha = value
        else:
            cast(Any, self.gate).adjust(option.removeprefix("router."), value)

    def _with_balance_loss(self, routing: Routing, shape: torch.Size, context: Context) -> Tensor:
        assert routing.scores is not None
        scores, experts, valid = routing.scores.unflatten(0, shape), routing.experts.unflatten(0, shape), context.valid
        if not self.options.seq_aux:
            scores, experts = scores.flatten(0, 1)[None], experts.flatten(0, 1)[None]
            valid = None if valid is None else valid.flatten()[None]
        loss = self.aux_loss_alpha * balance_loss(scores, experts, valid)
        return attach(routing.weights, loss, context, name="balance", key=id(self))
