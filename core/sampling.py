"""How the next token is drawn from logits: greedily, or by temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BestiaryError


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
