"""Hypothesis at the wheel: it makes the cases, and makes one that fails as small as it can."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .case import make_bases, run_case

ROUND = 2_000
"""Cases of one run of hypothesis; it keeps all of them in memory."""


def drive(cases: int, first: int, root: Path) -> Counter[str]:
    """Runs so many cases.

    Args:
        cases: how many.
        first: seed.
        root: a folder of its own.

    Returns:
        How often each outcome was seen, by what was damaged.

    Raises:
        AssertionError, or whatever was raised instead of a `BestiaryError`: with the smallest case that does so, left in `root`.
    """
    torch.set_num_threads(1)
    bases, counts = make_bases(root), Counter[str]()
    (root / "secret.safetensors").write_bytes((bases[1] / "model.safetensors").read_bytes())
    while (left := cases - sum(counts.values())) > 0:

        @seed(first * 1_000_003 + sum(counts.values()))
        @settings(
            max_examples=min(left, ROUND),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=False))
        def one(random: Random) -> None:
            run_case(random, root, bases, counts)

        one()
    return counts
