"""From FLOPs to hours, money and days.

    hours = tokens * FLOPs per token / (MFU * peak) / 3600

MFU (model FLOPs utilisation; PaLM, appendix B) has as many meanings as there are ways to count the model's FLOPs and the
machine's peak. Here, where nothing else is said: *training FLOPs with causal attention and all objectives, nothing recomputed,
over the peak of dense bf16 products*, whatever precision the run computes in. `Utilisation` gives the same speed in the other
conventions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...core.accounting import account
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from .gpus import Gpu, find_gpu

MFU = 0.35
"""Where none is given: between what public recipes for DeepSeek-V3 on H100 report (0.25 in bf16, 0.34 in FP8) and what
DeepSeek's own hours imply (0.41)."""


@dataclass(frozen=True)
class Utilisation:
    """One speed in every convention of MFU."""

    causal_bf16: float
    noncausal_bf16: float
    causal_fp8: float | None
    noncausal_fp8: float | None


@dataclass(frozen=True)
class Estimate:
    """Training on so many tokens of one sequence length."""

    tokens: float
    sequence_length: int
    flops_per_token: float
    """Forward and backward, causal attention, all objectives."""
    flops_per_token_noncausal: float
    tokens_per_second_per_gpu: float
    hours: float
    """GPU hours."""
    days: float
    """On all GPUs together."""
    money: float | None
    """In the currency of the price; None without one."""
    mfu: Utilisation

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    def table(self) -> dict[str, Any]:
        return asdict(self) | {"flops": self.flops}


def estimate(
    manifest: Manifest,
    *,
    tokens: float,
    gpu: str | Gpu = "h800",
    mfu: float | None = None,
    tokens_per_second_per_gpu: float | None = None,
    price: float | None = None,
    gpus: int = 2048,
    sequence_length: int | None = None,
) -> Estimate:
    """What training a model on `tokens` costs.

    Args:
        manifest: the model.
        tokens: to train on.
        gpu: an accelerator of `gpus.toml`, or one's own.
        mfu: utilisation in this module's convention; `MFU` when neither it nor a speed is given.
        tokens_per_second_per_gpu: a measured speed, instead of `mfu`.
        price: of a GPU hour.
        gpus: how many work at once.
        sequence_length: tokens per sequence; at most 4096 by default, or what the model was made for.

    Raises:
        BestiaryError: an unknown GPU, both or impossible speeds, or a figure that is not positive.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    _check(tokens=tokens, gpus=gpus, price=price, tokens_per_second_per_gpu=tokens_per_second_per_gpu, sequence_length=sequence_length)
    figures = account(manifest, sequence_length=sequence_length)
    speed = _speed(figures.flops_training, gpu, mfu, tokens_per_second_per_gpu)
    hours = tokens / speed / 3600
    return Estimate(
        tokens=tokens,
        sequence_length=figures.sequence_length,
        flops_per_token=figures.flops_training,
        flops_per_token_noncausal=figures.flops_training_noncausal,
        tokens_per_second_per_gpu=speed,
        hours=hours,
        days=hours / gpus / 24,
        money=None if price is None else hours * price,
        mfu=utilisation(speed, figures.flops_training, figures.flops_training_noncausal, gpu),
    )


def utilisation(tokens_per_second_per_gpu: float, causal: float, noncausal: float, gpu: Gpu) -> Utilisation:
    """A speed as MFU, from FLOPs per token in both conventions."""
    speeds = [tokens_per_second_per_gpu * flops for flops in (causal, noncausal)]
    low = [None if gpu.fp8 is None else speed / gpu.fp8 for speed in speeds]
    return Utilisation(speeds[0] / gpu.bf16, speeds[1] / gpu.bf16, *low)


def _speed(flops_per_token: float, gpu: Gpu, mfu: float | None, tokens_per_second: float | None) -> float:
    """Tokens per second of one GPU."""
    if mfu is not None and tokens_per_second is not None:
        raise BestiaryError("Both an MFU and a measured speed are given, and each follows from the other. Give one of them.")
    limit = (gpu.fp8 or gpu.bf16) / gpu.bf16
    share = tokens_per_second * flops_per_token / gpu.bf16 if tokens_per_second is not None else MFU if mfu is None else mfu
    if not 0 < share <= limit:
        fact = f"An MFU of {share:.3g} is impossible on {gpu.name}: it counts against the peak in dense bf16"
        most = f"at most {limit:.3g}" if tokens_per_second is None else f"at most {limit * gpu.bf16 / flops_per_token:,.0f} tokens/s"
        raise BestiaryError(f"{fact}{' while FP8 reaches twice that' if limit > 1 else ''}. Give {most}.")
    return share * gpu.bf16 / flops_per_token


def _check(**figures: float | None) -> None:
    for name, value in figures.items():
        if value is not None and not value > 0:
            raise BestiaryError(f"{name} = {value} is not positive. Give a number above 0.")
