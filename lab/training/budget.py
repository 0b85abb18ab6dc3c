"""How many rows each step reads, and how many were read before it: functions of the recipe alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..amount import Stair, value_at
from .options import TrainOptions


@dataclass(frozen=True)
class Budget:
    """The whole run, step by step."""

    rows: NDArray[np.int64]
    """`[steps]`, rows of each step."""
    before: NDArray[np.int64]
    """`[steps + 1]`, rows read before each step, and at the end."""
    length: int
    """Tokens of a row."""

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.tokens_after(self.steps)

    def tokens_after(self, step: int) -> int:
        """Read in the first `step` steps."""
        return int(self.before[step]) * self.length


def plan_budget(options: TrainOptions, length: int) -> Budget:
    """The steps of a run on rows of `length` tokens."""
    stairs = options.batch_schedule or ((0, options.batch_size),)
    return _plan(options.steps, options.tokens, stairs, length)


@lru_cache(maxsize=64)
def _plan(steps: int, tokens: int, stairs: tuple[Stair, ...], length: int) -> Budget:
    if steps:
        rows = [int(stairs[0][1])] * steps
    elif len(stairs) == 1:
        rows = [int(stairs[0][1])] * -(-tokens // (int(stairs[0][1]) * length))
    else:
        rows = _climb(tokens, stairs, length)
    counts = np.array(rows, dtype=np.int64)
    return Budget(counts, np.concatenate(([0], counts.cumsum())), length)


def _climb(tokens: int, stairs: tuple[Stair, ...], length: int) -> list[int]:
    done, rows = 0, []
    while done < tokens:
        rows.append(int(value_at(stairs, done, tokens)))
        done += rows[-1] * length
    return rows
