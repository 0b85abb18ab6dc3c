"""What a recipe says about its budget, its optimizer and the learning rate."""

from __future__ import annotations

from pydantic import Field, model_validator

from ...core.component import Options
from ..amount import Amount


class TrainOptions(Options):
    batch_size: int = Field(default=8, gt=0)
    """Rows of an optimizer step."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; or say `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens to train on, rounded up to whole steps; or say `steps`."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the accelerator when there is one."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainOptions:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("expected either steps or tokens, the budget of the run. Set one of them")
        return self


class AdamWOptions(Options):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of matrices; norms and biases do not decay."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""


class ScheduleOptions(Options):
    """Linear warm-up, constant, cosine to `final_ratio`, constant (DeepSeek-V3's report, section 4.2)."""

    warmup: Amount = 0.02
    """Length of the rise from zero."""
    decay: Amount = 0.4
    """Length of the cosine."""
    tail: Amount = 0.0
    """Length of the last constant phase."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Last learning rate as a part of the peak."""
