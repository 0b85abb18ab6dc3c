"""The MTP objective (DeepSeek-V3, equations 21 to 25).

For depth k = 1 ... D and position i, with `h^0` the main model's hidden state,

    h'_i = eh_proj [enorm(embed(t_{i+k})) ; hnorm(h^{k-1}_i)]     h^k = block_k(h')     logits = head(shared_head.norm(h^k_i))

predict token `i + k + 1`. Released weights expect the embedding first in the concatenation, unlike equation 21. The block
is built like the model's last one; embedding and head are the model's own.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...core.backbone import Block, CausalLM
from ...core.contracts import IGNORE, Batch, Context, Hidden, Loss
from ...core.site import Site
from .options import MTPOptions


class SharedHead(nn.Module):
    """The norm before the model's head; its weights are its own, the head's are shared."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.norm = site.norm(site.hidden_size)


class MTPLayer(nn.Module):
    """One depth: `[B, S - k, D]` hidden states and embeddings to the next depth's hidden states."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        assert site.block is not None
        self.enorm, self.hnorm = site.norm(site.hidden_size), site.norm(site.hidden_size)
        self.eh_proj = site.linear(2 * site.hidden_size, site.hidden_size, role="projection")
        self.block = Block(*site.block, site)
        self.shared_head = SharedHead(site)

    def forward(self, embedding: Tensor, hidden: Tensor, context: Context) -> Tensor:
        joined = torch.cat((self.enorm(embedding), self.hnorm(hidden)), dim=-1)
        return self.block(self.eh_proj(joined), context)


class MTP(nn.Module):
    """The modules of all depths."""

    def __init__(self, site: Site, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MTPLayer(site.at(site.num_hidden_layers + k)) for k in range(depth))


class MultiTokenPrediction:
    """Mean over depths of the cross-entropy of tokens further ahead, times `weight`."""

    def __init__(self, options: MTPOptions) -> None:
        self.options, self.weight = options, options.weight
        self.modules: MTP | None = None

    def extend(self, model: CausalLM, site: Site) -> nn.Module | None:
        self.modules = MTP(site, self.options.depth)
        return self.modules

    def count(self, batch: Batch) -> Tensor:
        """`[depth]`: targets of each depth."""
        return torch.stack([(self._targets(batch, k) != IGNORE).sum() for k in self._depths()])

    def loss(self, model: CausalLM, batch: Batch, hidden: Hidden, count: Tensor) -> Loss:
        states = self.states(model, batch, hidden)
        sums = [model.token_loss(normed, self._targets(batch, k)) for k, normed in zip(self._depths(), states, strict=True)]
        if hidden.context.observed is not None:
            hidden.context.observed |= self._agreement(model, batch, hidden, states)
        losses = torch.stack(sums) / count.clamp(min=1)
        parts = {f"mtp-{k}": loss.detach() for k, loss in zip(self._depths(), losses, strict=True)}
        return Loss(self.weight * losses.mean(), parts)

    def states(self, model: CausalLM, batch: Batch, hidden: Hidden) -> list[Tensor]:
        """What the head reads at each depth k: `[B, S - k, D]` each."""
        post = self.options.hidden == "post-norm"
        state, states = hidden.normed if post else hidden.raw, []
        assert self.modules is not None
        for k, layer in zip(self._depths(), cast(list[MTPLayer], self.modules.layers), strict=True):
            length = batch.input_ids.shape[1] - k
            raw = layer(model.model.embed(batch.input_ids[:, k:]), state[:, :length], _shorter(hidden.context, length))
            normed = layer.shared_head.norm(raw)
            states.append(normed)
            state = normed if post else raw
        return states

    def _agreement(self, model: CausalLM, batch: Batch, hidden: Hidden, states: list[Tensor]) -> dict[str, Tensor]:
        """By depth, `[B, 2]`: how often its most likely token is the main model's too, and of how many targets."""
        main, found = model.logits(hidden.normed).argmax(dim=-1), {}
        for k, normed in zip(self._depths(), states, strict=True):
            used = self._targets(batch, k) != IGNORE
            agrees = (model.logits(normed).argmax(dim=-1) == main[:, k:]) & used
            found[f"mtp-{k}.agreement"] = torch.stack((agrees.sum(dim=1), used.sum(dim=1)), dim=1)
        return found

    def adjust(self, option: str, value: float) -> None:
        """Changes `weight`."""
        assert option == "weight"
        self.weight = value

    def _depths(self) -> range:
        return range(1, self.options.depth + 1)

    def _targets(self, batch: Batch, k: int) -> Tensor:
        """`[B, S - k]`: token `i + k + 1` of each position, ignored where it lies in another document."""
        targets = batch.targets[:, k:]
        if batch.segments is None:
            return targets
        return targets.masked_fill(batch.segments[:, k:] != batch.segments[:, :-k], IGNORE)


def _shorter(context: Context, length: int) -> Context:
    """The context of the first `length` positions, reporting auxiliary losses to the same place."""
    cut = [None if t is None else t[:, :length] for t in (context.positions, context.segments, context.valid)]
    shorter = Context(cast(Tensor, cut[0]), segments=cut[1], valid=cut[2], aux_scale=context.aux_scale, observed=context.observed)
    shorter.parts = context.parts
    return shorter
