"""What this machine can do at best: bf16 products, reading memory, copying memory.

A mode's limit is `tokens / max(FLOPs / product rate, bytes / read rate)`: an upper bound, since norms, softmax and routing
count as free and the best product shape stands for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bestiary.core.accounting import account, layer_cost
from bestiary.core.manifest import Manifest
from bestiary.core.table import entries

OPTIMIZER_BYTES = 20
"""Of AdamW with fp32 weights and bf16 moments, for each parameter."""


@dataclass(frozen=True)
class Limits:
    """Best rates seen, per second."""

    flops: float
    read: float
    copy: float


def best(work: Callable[[], object], *, seconds: float = 2.0) -> float:
    """Seconds of the fastest call within a budget."""
    work()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def measure() -> Limits:
    """Rates with all of torch's threads."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    big = torch.ones(64 << 20, dtype=torch.float32)
    to = torch.empty_like(big)
    return Limits(
        flops=2 * 2048**3 / best(lambda: a @ b),
        read=big.nbytes / best(lambda: big.sum()),
        copy=2 * big.nbytes / best(lambda: to.copy_(big)),
    )


def training(manifest: Manifest, limits: Limits, *, length: int, optimizer: bool, tokens: int) -> float:
    """Tokens per second of forward and backward, and AdamW if asked for: weights and two bf16 moments read and written, gradients read."""
    figures = account(manifest, sequence_length=length)
    seconds = tokens * figures.flops_training / limits.flops
    if optimizer:
        seconds += OPTIMIZER_BYTES * figures.parameters / limits.copy
    return tokens / seconds


def prefill(manifest: Manifest, limits: Limits, *, length: int) -> float:
    """Tokens per second of a prompt; the head is used at its last position only."""
    head = 2 * manifest.model.vocab_size * manifest.model.hidden_size
    return limits.flops / (account(manifest, sequence_length=length).flops_forward - head * (1 - 1 / length))


def decoding_bytes(manifest: Manifest, *, batch: int, context: int) -> float:
    """bf16 bytes that one step must read: what every token uses, the distinct experts that a batch expects, the cache."""
    read = manifest.model.vocab_size * manifest.model.hidden_size if manifest.model.tie_word_embeddings else 0.0
    for entry in entries(manifest):
        weight = entry.weight
        if entry.part in ("embedding", *manifest.objectives):
            continue
        chance = weight.active_numel / weight.numel
        read += weight.numel * (1 - (1 - chance) ** batch) if chance < 1 else weight.numel
    return 2 * (read + batch * context * layer_cost(manifest).cache_elements)


def decoding(manifest: Manifest, limits: Limits, *, batch: int, context: int) -> float:
    """Tokens per second of all sequences together."""
    flops = batch * account(manifest, sequence_length=2 * context).flops_forward
    return batch / max(flops / limits.flops, decoding_bytes(manifest, batch=batch, context=context) / limits.read)
