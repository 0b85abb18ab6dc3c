"""MTP's blocks as a drafter for speculative decoding (DeepSeek-V3, section 5.4.3).

Depth k at position i reads the state that depth k - 1 made there and the embedding of token `i + k`. So every depth runs over the
positions that have become certain, in a cache of its own, and its last position guesses token k of the draft. The last k - 1
positions of depth k rest on guesses; they are run again in the next call, when these tokens are certain.

Beyond the trained depths the last block goes on alone: its output state, from which token n was guessed, stands for the state
of position n - 1, and makes with token n the next step of the same block. It was not trained for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ...core.backbone import CausalLM
from ...core.cache import LayerCache
from ...core.contracts import Attention, Context, Hidden
from .objective import MTPLayer, MultiTokenPrediction


class MTPDrafter:
    """Drafts for `batch` sequences of up to `length` tokens."""

    def __init__(self, goal: MultiTokenPrediction, model: CausalLM, *, batch: int, length: int, draft_tokens: int) -> None:
        self.goal, self.model, self.count = goal, model, draft_tokens
        self.layers = goal.layers[:draft_tokens]
        kinds: dict[str, Any] = {"device": model.device, "dtype": model.model.compute_dtype}
        attentions = [cast(Attention, layer.block.self_attn) for layer in self.layers]
        self.caches = [attention.new_cache(batch, length + draft_tokens, **kinds) for attention in attentions]
        self.certain = 0
        self.state = torch.empty(batch, 0, model.manifest.model.hidden_size, **kinds)
        self.tokens = torch.empty(batch, 0, dtype=torch.int64, device=model.device)

    def draft(self, hidden: Hidden, following: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """See `core.contracts.Drafter`."""
        state, tokens = self._rewind(self.goal.passed_on(hidden.raw, hidden.normed), following)
        length, context = tokens.shape[1], self._context(self.caches, tokens.shape[1])
        for depth, layer in enumerate(self.layers):
            state, guess = self._run(layer, tokens[:, depth:], state, context, choose)
            tokens = torch.cat((tokens, guess), dim=1)
        for _ in range(self.count - len(self.layers)):
            context = self._context(self.caches[-1:] * len(self.layers), 1)
            state, guess = self._run(self.layers[-1], tokens[:, -1:], state[:, -1:], context, choose)
            tokens = torch.cat((tokens, guess), dim=1)
        return tokens[:, length:]

    def _rewind(self, state: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Drops what rested on guesses; the states and following tokens of all positions to run, old ones first."""
        for cache in self.caches:
            cache.crop(self.certain - self.tokens.shape[1])
        self.certain += following.shape[1]
        state, tokens = torch.cat((self.state, state), dim=1), torch.cat((self.tokens, following), dim=1)
        again = max(tokens.shape[1] - len(self.layers) + 1, 0)
        self.state, self.tokens = state[:, again:], tokens[:, again:]
        return state, tokens

    def _context(self, caches: Sequence[LayerCache], length: int) -> Context:
        """Of `length` further positions; the blocks are the layers after the model's, of which there are no caches here."""
        past = caches[0].length
        positions = torch.arange(past, past + length, device=self.model.device)[None]
        return Context(positions, caches=[caches[0]] * self.model.manifest.model.num_hidden_layers + list(caches))

    def _run(
        self, layer: MTPLayer, tokens: Tensor, state: Tensor, context: Context, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One block: the state that it passes on `[B, S, D]`, and its guess `[B, 1]` after the last position."""
        raw = layer(self.model.model.embed(tokens), state, context)
        normed = layer.shared_head.norm(raw)
        return self.goal.passed_on(raw, normed), choose(self.model.logits(normed[:, -1]))[:, None]
