"""What repeated runs can say: paired differences over seeds, with an interval by Student's t.

Two variants that share a seed share initial weights as far as their shapes agree, and the order of their data, so that their
difference varies less than either result. With differences `d_1 ... d_n` of mean `m` and standard deviation `s` (divisor n - 1)
the interval is `m +- t(n - 1) s / sqrt(n)`: in 95 of 100 studies it holds the true mean, if differences are about normal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

LEVEL = 0.95
Verdict = Literal["lower", "higher", "cannot tell", "nothing can be concluded"]


@dataclass(frozen=True)
class Paired:
    """Differences of one figure between a variant and the baseline, seed by seed."""

    differences: dict[int, float]
    """By seed."""
    mean: float
    low: float | None
    """Of the interval; None with fewer than two seeds."""
    high: float | None

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def verdict(self) -> Verdict:
        """Whether the variant's figure differs, as far as these seeds tell."""
        if self.low is None or self.high is None:
            return "nothing can be concluded"
        return "lower" if self.high < 0 else "higher" if self.low > 0 else "cannot tell"


def paired(variant: Mapping[int, float], baseline: Mapping[int, float], *, level: float = LEVEL) -> Paired | None:
    """The paired differences over the seeds that both have; None when there is no such seed.

    Args:
        variant: a figure by seed.
        baseline: the same figure of the baseline.
        level: of confidence.
    """
    found = {seed: variant[seed] - baseline[seed] for seed in variant if seed in baseline}
    if not found:
        return None
    mean, half = interval(list(found.values()), level=level)
    return Paired(found, mean, None if half is None else mean - half, None if half is None else mean + half)


def interval(values: list[float], *, level: float = LEVEL) -> tuple[float, float | None]:
    """The mean, and half the width of its confidence interval; None with fewer than two values."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), t_quantile(level, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_quantile(level: float, degrees: int) -> float:
    """The t for which `P(|T| < t) = level`, by bisection of `t_probability` to the last bit or so.

    Args:
        level: two-sided, in (0, 1).
        degrees: degrees of freedom, at least 1.
    """
    if not 0 < level < 1 or degrees < 1:
        raise ValueError(f"expected a level between 0 and 1 and at least one degree of freedom, found {level} and {degrees}")
    low, high = 0.0, 1.0
    while t_probability(high, degrees) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_probability(middle, degrees) < level else (low, middle)
    return high


def t_probability(t: float, degrees: int) -> float:
    """`P(|T| < t)` for Student's t with a whole number of degrees of freedom.

    A finite sum of powers of `cos(arctan(t / sqrt(degrees)))` (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
