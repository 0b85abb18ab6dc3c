"""Bits per byte of held-out text, a loss that does not depend on the tokenizer, and what modules tell on the way.

bits per byte = nats per target * targets / (ln 2 * bytes of text behind the targets)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.backbone import CausalLM
from ...core.contracts import IGNORE, Parallelism
from ...core.errors import BestiaryError
from ..data.dataset import Data
from ..training.device import move

LOSS = "next-token"
"""The part of the loss that evaluation reads."""


@dataclass(frozen=True)
class Evaluation:
    """What held-out text says of a model."""

    bits_per_byte: float
    expert_load: dict[str, list[float]] = field(default_factory=dict)
    """By layer, the share of token copies that each expert got."""
    max_vio_sequence: float | None = None
    """Mean over sequences and layers of MaxVio within a sequence."""
    agreement: dict[str, float] = field(default_factory=dict)
    """By objective and depth, how often its most likely token is the main model's."""


def bits_per_byte(nats: float, bytes: float) -> float:
    """Summed loss in nats over `bytes` of text, as bits per byte."""
    return nats / (math.log(2) * bytes)


def evaluate(model: CausalLM, parallelism: Parallelism, data: Data, batch_size: int, device: torch.device) -> Evaluation:
    """Reads the held-out rows.

    Raises:
        BestiaryError: the model has no objective that predicts the next token.
    """
    nats, text = 0.0, 0
    seen: list[dict[str, Tensor]] = []
    for batch, count in data.evaluation(batch_size):
        loss = parallelism.evaluate(model, move(batch, device))
        if LOSS not in loss.parts:
            found = ", ".join(loss.parts)
            raise BestiaryError(f"Bits per byte need the objective '{LOSS}', and this model has {found}. Add it, with a weight of 0.")
        nats += float(loss.parts[LOSS]) * int((batch.targets != IGNORE).sum())
        text += count
        seen.append(loss.observed)
    observed = {name: torch.cat([one[name] for one in seen]).double() for name in seen[0]}
    loads = {name.removesuffix(".load"): tensor for name, tensor in observed.items() if name.endswith(".load")}
    return Evaluation(
        bits_per_byte(nats, text),
        {layer: (load.sum(dim=0) / load.sum()).tolist() for layer, load in loads.items()},
        _violation_in_sequences(loads),
        {name.removesuffix(".agreement"): _share(tensor) for name, tensor in observed.items() if name.endswith(".agreement")},
    )


def _violation_in_sequences(loads: Mapping[str, Tensor]) -> float | None:
    """Mean of `(max - mean) / mean` over all rows of all layers."""
    if not loads:
        return None
    rows = [(load.amax(dim=1) / load.mean(dim=1) - 1).mean() for load in loads.values()]
    return float(torch.stack(rows).mean())


def _share(counts: Tensor) -> float:
    hits, of = counts.sum(dim=0).tolist()
    return hits / of
