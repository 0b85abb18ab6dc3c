"""Rotary position embedding (Su et al., 2021) and the ways of stretching it to longer contexts.

Pair i of the d rotary dimensions turns by `position * f_i`, `f_i = theta^(-2i/d)`. Two layouts of the pairs exist:
*interleaved* (x0, x1), (x2, x3), ... as DeepSeek's weights have it, and *half-split* (x0, x_{d/2}), ... as Llama's and
Qwen's. Both give the same scores when the weights' rows are permuted accordingly. Angles, sine and
cosine are fp32 throughout.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..component import Options

if TYPE_CHECKING:
    from torch import Tensor

    from ..contracts import Context


class LinearScaling(Options):
    """Every frequency divided by `factor` (position interpolation, Chen et al., 2023)."""

    type: Literal["linear"]
    """Which way of stretching."""
    factor: float = Field(ge=1)
    """How many times longer the context becomes."""


class Llama3Scaling(Options):
    """Low frequencies divided by `factor`, high ones kept, a smooth passage between (Llama 3.1)."""

    type: Literal["llama3"]
    """Which way of stretching."""
    factor: float = Field(ge=1)
    """How many times longer the context becomes."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Turns over the original context below which a frequency is divided by `factor`."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Turns above which it is kept."""
    original_max_position_embeddings: int = Field(gt=0)
    """The context before stretching, in tokens."""


class YarnScaling(Options):
    """YaRN (Peng et al., 2023): frequencies that turn often are kept, those that turn rarely are divided."""

    type: Literal["yarn"]
    """Which way of stretching."""
    factor: float = Field(ge=1)
    """How many times longer the context becomes."""
    original_max_position_embeddings: int = Field(gt=0)
    """The context before stretching, in tokens."""
    beta_fast: float = 32.0
    """Turns over the original context above which a frequency is kept."""
    beta_slow: float = 1.0
    """Turns below which it is divided by `factor`."""
    mscale: float | None = None
    """With `mscale_all_dim`: the ratio of both temperatures multiplies sine and cosine."""
    mscale_all_dim: float | None = None
    """Temperature whose square multiplies MLA's softmax scale."""
    attention_factor: float | None = None
    """Multiplies sine and cosine; derived from `factor` when None."""
    truncate: bool = True
    """Whether the ramp's ends are rounded outwards to whole dimensions."""


Scaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="type")]


class RopeOptions(Options):
    """The `rope` table of an attention component."""

    theta: float = Field(default=10000.0, gt=0)
    """Base of the frequencies."""
    scaling: Scaling | None = None
    """How the frequencies are stretched beyond the original context; None leaves them."""


def yarn_mscale(factor: float, mscale: float) -> float:
    """`0.1 * mscale * ln(factor) + 1` (DeepSeek-V2, section 3.1.4; YaRN, equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_multiplier(options: RopeOptions) -> float:
    """What MLA multiplies its softmax scale by: the square of YaRN's `mscale_all_dim` temperature."""
    scaling = options.scaling
    if not isinstance(scaling, YarnScaling) or not scaling.mscale_all_dim:
        return 1.0
    return yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def magnitude(options: RopeOptions) -> float:
    """What sine and cosine are multiplied by."""
    scaling = options.scaling
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


@lru_cache
def frequencies(options: RopeOptions, dim: int) -> tuple[float, ...]:
    """The `dim / 2` frequencies in radians per position."""
    base = [options.theta ** (-2 * i / dim) for i in range(dim // 2)]
    match options.scaling:
        case None:
            return tuple(base)
        case LinearScaling(factor=factor):
            return tuple(f / factor for f in base)
        case Llama3Scaling() as scaling:
            return tuple(_llama3(f, scaling) for f in base)
        case YarnScaling() as scaling:
            low, high = yarn_range(options.theta, scaling, dim)
            return tuple(_yarn(f, (i - low) / (high - low), scaling.factor) for i, f in enumerate(base))


def yarn_range(theta: float, scaling: YarnScaling, dim: int) -> tuple[float, float]:
    """The pairs between which YaRN passes from kept to divided frequencies."""

    def pair(turns: float) -> float:
        return dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn(frequency: float, ramp: float, factor: float) -> float:
    divided = min(max(ramp, 0.0), 1.0)
    return frequency / factor * divided + frequency * (1 - divided)


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if turns < low:
        return frequency / scaling.factor
    if turns > high:
        return frequency
    kept = (turns - low) / (high - low)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def tables(options: RopeOptions, dim: int, context: Context) -> tuple[Tensor, Tensor]:
    """Cosine and sine for the context's positions, `[B or 1, S, dim / 2]` fp32 each, once per forward pass."""
    return context.once((options, dim), lambda: _tables(options, dim, context.positions))


def _tables(options: RopeOptions, dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    frequency = torch.tensor(frequencies(options, dim), dtype=torch.float32, device=positions.device)  # pyright: ignore[reportArgumentType]
    angle = positions[..., None].float() * frequency
    return angle.cos() * magnitude(options), angle.sin() * magnitude(options)


def rotate(x: Tensor, table: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    """Turns every pair of `x` by its position's angle.

    Args:
        x: `[B, S, H, dim]` or `[B, S, dim]`, any dtype.
        table: cosine and sine from `tables`.
        interleaved: whether pairs are neighbours or lie half of `dim` apart; the result keeps the layout.
    """
    import torch

    cos, sin = (t.unsqueeze(-2) if x.ndim == 4 else t for t in table)
    cos, sin = (t.to(torch.promote_types(x.dtype, torch.float32)) for t in (cos, sin))
    if interleaved:
        a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
