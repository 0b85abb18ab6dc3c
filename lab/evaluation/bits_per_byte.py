"""Bits per byte of held-out text: a loss that does not depend on the tokenizer.

bits per byte = nats per target * targets / (ln 2 * bytes of text behind the targets)
"""

from __future__ import annotations

import math

import torch

from ...core.backbone import CausalLM
from ...core.contracts import IGNORE, Parallelism
from ...core.errors import BestiaryError
from ..data.dataset import Data
from ..training.device import move

LOSS = "next-token"
"""The part of the loss that evaluation reads."""


def bits_per_byte(nats: float, bytes: float) -> float:
    """Summed loss in nats over `bytes` of text, as bits per byte."""
    return nats / (math.log(2) * bytes)


def evaluate(model: CausalLM, parallelism: Parallelism, data: Data, batch_size: int, device: torch.device) -> float:
    """Bits per byte on the held-out rows.

    Raises:
        BestiaryError: the model has no objective that predicts the next token.
    """
    nats, text = 0.0, 0
    for batch, count in data.evaluation(batch_size):
        parts = parallelism.evaluate(model, move(batch, device)).parts
        if LOSS not in parts:
            found = ", ".join(parts)
            raise BestiaryError(f"Bits per byte need the objective '{LOSS}', and this model has {found}. Add it, with a weight of 0.")
        nats += float(parts[LOSS]) * int((batch.targets != IGNORE).sum())
        text += count
    return bits_per_byte(nats, text)
