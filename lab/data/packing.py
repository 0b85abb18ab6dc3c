"""Documents joined by an end token and cut into rows of equal length.

Row i reads tokens `i S ... i S + S - 1` of the stream and predicts the ones after each, so that every token is read
once, and every token but the first predicted once. What is left at the end of the stream fills no row and is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.contracts import IGNORE, Batch
from .tokens import Tokens


@dataclass(frozen=True)
class Rows:
    """A packed stream. `S` is the row length."""

    stream: Tokens
    """Ids of all documents, each followed by `end`."""
    length: int
    """S."""
    end: int
    mask_documents: bool

    def __len__(self) -> int:
        return max(0, (len(self.stream) - 1) // self.length)

    def batch(self, rows: Sequence[int] | NDArray[np.integer]) -> Batch:
        """Ids and targets `[B, S]` of these rows, with segments when documents are masked."""
        starts = np.asarray(rows, dtype=np.int64)[:, None] * self.length
        window = self.stream[starts + np.arange(self.length + 1)].astype(np.int64)
        ids, targets = window[:, :-1], window[:, 1:].copy()
        if not self.mask_documents:
            return Batch(torch.from_numpy(ids.copy()), torch.from_numpy(targets))
        ended = ids == self.end
        targets[ended] = IGNORE
        segments = ended.cumsum(axis=1) - ended
        return Batch(torch.from_numpy(ids.copy()), torch.from_numpy(targets), segments=torch.from_numpy(segments))
