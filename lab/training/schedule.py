"""The learning rate of every step: linear warm-up, constant, cosine, constant (DeepSeek-V3's report, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..amount import steps_of
from .options import ScheduleOptions


@dataclass(frozen=True)
class Schedule:
    """A function of the step alone, so that resuming needs no state of its own."""

    peak: float
    steps: int
    options: ScheduleOptions

    def lr(self, step: int) -> float:
        """The learning rate with which step `step`, counted from 0, is taken."""
        warmup, decay, tail = (steps_of(a, self.steps) for a in (self.options.warmup, self.options.decay, self.options.tail))
        if step < warmup:
            return self.peak * (step + 1) / warmup
        fall = step - (self.steps - tail - decay)
        if fall < 0:
            return self.peak
        final = self.options.final_ratio
        progress = min(1.0, (fall + 1) / (decay + 1))
        return self.peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
