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
from ...core.contracts import IGNORE, Batch, Context, Drafter, Hidden, Loss
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

    embeds = True

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
        states = self.states(model, batch.input_ids, hidden)
        sums = [model.token_loss(normed, self._targets(batch, k)) for k, normed in zip(self._depths(), states, strict=True)]
        if hidden.context.observed is not None:
            hidden.context.observed |= self._agreement(model, batch, hidden, states)
        losses = torch.stack(sums) / count.clamp(min=1)
        parts = {f"mtp-{k}": loss.detach() for k, loss in zip(self._depths(), losses, strict=True)}
        return Loss(self.weight * losses.mean(), parts)

    def states(self, model: CausalLM, input_ids: Tensor, hidden: Hidden) -> list[Tensor]:
        """What the head reads at each depth k: `[B, S - k, D]` each."""
        state, states = self.passed_on(hidden.raw, hidden.normed), []
        for k, layer in zip(self._depths(), self.layers, strict=True):
            length = max(input_ids.shape[1] - k, 0)
            raw = layer(model.model.embed(input_ids[:, k:]), state[:, :length], _shorter(hidden.context, length))
            states.append(layer.shared_head.norm(raw))
            state = self.passed_on(raw, states[-1])
        return states

    def mtp_logits(
        self, model: CausalLM, input_ids: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> list[Tensor]:
        """What every depth predicts: `[B, S - k, V]` for k = 1 ... D, where position i predicts token `i + k + 1`.

        Args:
            model: given by the model itself, whose method this is.
            input_ids: `[B, S]` int64.
            positions: `[B, S]` or `[1, S]`, from 0 by default.
            segments: `[B, S]`, the document of each token when rows are packed. Where token `i + k` lies in another document
                than token i, the prediction means nothing.
        """
        hidden = model.hidden(input_ids, positions=positions, segments=segments)
        return [model.logits(normed) for normed in self.states(model, input_ids, hidden)]

    def drafter(self, model: CausalLM, batch: int, length: int, draft_tokens: int) -> Drafter:
        """Drafts for `batch` sequences of up to `length` tokens; more tokens than depths reuse the last block."""
        from .drafter import MTPDrafter

        return MTPDrafter(self, model, batch=batch, length=length, draft_tokens=draft_tokens)

    @property
    def layers(self) -> list[MTPLayer]:
        """One block per depth."""
        assert self.modules is not None
        return cast(list[MTPLayer], list(self.modules.layers))

    def passed_on(self, raw: Tensor, normed: Tensor) -> Tensor:
        """The state that the next depth reads, of what a level gives before and after its final norm."""
        return normed if self.options.hidden == "post-norm" else raw

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
