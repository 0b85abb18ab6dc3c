"""The learning rate of every step: linear warm-up, constant, cosine, constant, constant (DeepSeek-V3's report, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..amount import steps_of
from .options import ScheduleOptions


@dataclass(frozen=True)
class Schedule:
    """A function of the step alone, so that resuming needs no state of its own."""

    steps: int
    options: ScheduleOptions

    def part(self, step: int) -> float:
        """The learning rate with which step `step`, counted from 0, is taken, as a part of its peak."""
        o = self.options
        warmup, decay, tail, cooldown = (steps_of(a, self.steps) for a in (o.warmup, o.decay, o.tail, o.cooldown))
        if step < warmup:
            return (step + 1) / warmup
        if step >= self.steps - cooldown:
            return o.cooldown_ratio
        fall = step - (self.steps - cooldown - tail - decay)
        if fall < 0:
            return 1.0
        progress = min(1.0, (fall + 1) / (decay + 1))
        return o.final_ratio + (1 - o.final_ratio) * (1 + math.cos(math.pi * progress)) / 2
