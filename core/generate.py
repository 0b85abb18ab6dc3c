"""Decoding through a cache: one prefill, then token by token, or by what a drafter guesses (`core.speculate`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import BestiaryError
from .sampling import Sampling, draw
from .speculate import Speculation, Speculative

if TYPE_CHECKING:
    from .backbone import CausalLM


def generate(
    model: CausalLM, input_ids: Tensor, *, max_new_tokens: int, sampling: Sampling, speculation: Speculation | None = None
) -> Tensor:
    """`[B, S]` prompts to `[B, S + N]`, N at most `max_new_tokens`; raises as `stream` does."""
    tokens = stream(model, input_ids, max_new_tokens=max_new_tokens, sampling=sampling, speculation=speculation)
    return torch.cat([input_ids, *(token[:, None] for token in tokens)], dim=1)


@torch.no_grad()
def stream(
    model: CausalLM, input_ids: Tensor, *, max_new_tokens: int, sampling: Sampling, speculation: Speculation | None = None
) -> Iterator[Tensor]:
    """The tokens that follow `[B, S]` prompts, `[B]` at a time; rows that ended repeat their end token until all have.

    Raises:
        BestiaryError: the prompt is empty, `max_new_tokens` is negative, both together exceed `max_position_embeddings`, or
            the model has no objective that drafts as `speculation` says.
    """
    batch, length = input_ids.shape
    _check_length(model, length, max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        generator = None if sampling.seed is None else torch.Generator(input_ids.device).manual_seed(sampling.seed)
        ends = _ends(model, sampling)
        how = model, input_ids, length + max_new_tokens, sampling, generator
        decoder = Speculative(*how, speculation=speculation, ends=ends) if speculation else _Plain(*how)
        done, last = [False] * batch, input_ids[:, -1]
        while max_new_tokens:
            for token in decoder.block(max_new_tokens, done).unbind(dim=1):
                last = torch.where(torch.tensor(done, device=token.device), last, token) if any(done) else token
                max_new_tokens -= 1
                yield last
                done = [over or new in ends for over, new in zip(done, last.tolist(), strict=True)]
                if all(done):
                    return
    finally:
        model.train(was_training)


class _Plain:
    """Decodes a batch token by token."""

    def __init__(self, model: CausalLM, input_ids: Tensor, length: int, sampling: Sampling, generator: torch.Generator | None) -> None:
        self.model, self.sampling, self.generator = model, sampling, generator
        self.cache, self.step = model.new_cache(len(input_ids), length), input_ids

    def block(self, room: int, done: list[bool]) -> Tensor:
        """`[B, 1]`: the next token of every row."""
        normed = self.model.hidden(self.step, cache=self.cache).normed[:, -1]
        self.step = draw(self.model.logits(normed), self.sampling, self.generator)[:, None]
        return self.step


def _check_length(model: CausalLM, length: int, max_new_tokens: int) -> None:
    limit = model.manifest.model.max_position_embeddings
    if length == 0:
        raise BestiaryError("The prompt is empty. Give at least one token, such as the begin token.")
    if max_new_tokens < 0:
        raise BestiaryError(f"max_new_tokens {max_new_tokens} is negative. Ask for the number of tokens to add.")
    if length + max_new_tokens > limit:
        raise BestiaryError(
            f"{length} prompt tokens and {max_new_tokens} new ones exceed the model's {limit} positions. "
            f"Ask for at most {limit - length} new tokens."
        )


def _ends(model: CausalLM, sampling: Sampling) -> frozenset[int]:
    ends = sampling.eos_token_id if sampling.eos_token_id is not None else model.manifest.model.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
