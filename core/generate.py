"""Decoding: one prefill, then one token at a time through the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import BestiaryError

if TYPE_CHECKING:
    from .backbone import CausalLM


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Draw among the k most likely tokens only."""
    top_p: float = 1.0
    """Draw among the fewest tokens that hold this much probability (nucleus sampling)."""
    seed: int | None = None
    """Makes the draw repeatable."""
    eos_token_id: int | list[int] | None = None
    """Stops a row; the manifest's end token when None."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise BestiaryError(f"temperature {self.temperature} is negative. Use 0 for greedy decoding, or a positive number.")
        if not 0 < self.top_p <= 1:
            raise BestiaryError(f"top_p {self.top_p} is not in (0, 1]. Use 1 to draw from all tokens.")
        if self.top_k is not None and self.top_k < 1:
            raise BestiaryError(f"top_k {self.top_k} is less than 1. Leave it out to draw from all tokens.")


def generate(model: CausalLM, input_ids: Tensor, *, max_new_tokens: int, sampling: Sampling) -> Tensor:
    """`[B, S]` prompts to `[B, S + N]`, N at most `max_new_tokens`; raises as `stream` does."""
    tokens = stream(model, input_ids, max_new_tokens=max_new_tokens, sampling=sampling)
    return torch.cat([input_ids, *(token[:, None] for token in tokens)], dim=1)


@torch.no_grad()
def stream(model: CausalLM, input_ids: Tensor, *, max_new_tokens: int, sampling: Sampling) -> Iterator[Tensor]:
    """The tokens that follow `[B, S]` prompts, `[B]` at a time; rows that ended repeat their end token until all have.

    Raises:
        BestiaryError: the prompt is empty, `max_new_tokens` is negative, or both together exceed `max_position_embeddings`.
    """
    batch, length = input_ids.shape
    _check_length(model, length, max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache(batch, length + max_new_tokens)
        generator = None if sampling.seed is None else torch.Generator(input_ids.device).manual_seed(sampling.seed)
        ends = _ends(model, sampling).to(input_ids.device)
        done = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
        step, last = input_ids, input_ids[:, -1]
        for _ in range(max_new_tokens):
            normed = model.hidden(step, cache=cache).normed[:, -1]
            last = torch.where(done, last, draw(model.logits(normed), sampling, generator))
            yield last
            done |= torch.isin(last, ends)
            if done.all():
                return
            step = last[:, None]
    finally:
        model.train(was_training)


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


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """`[B, V] -> [B]`: one token per row."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial(probabilities(logits, sampling), 1, generator=generator)[:, 0]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """`[B, V]` logits to the fp32 distribution that is drawn from, after temperature, top-k and top-p."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        least = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), float("-inf"))
    return logits.softmax(dim=-1)


def _ends(model: CausalLM, sampling: Sampling) -> Tensor:
    ends = sampling.eos_token_id if sampling.eos_token_id is not None else model.manifest.model.eos_token_id
    return torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else ends, dtype=torch.int64)
