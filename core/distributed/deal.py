"""Rows that several ranks have alike and one of them sends: exchanges with experts where tensor ranks compute the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..exchange import Handle, Transport
from .tensor_ranks import TensorRanks


@dataclass(frozen=True)
class Dealt:
    """Out: of rows that all tensor ranks have, each sends its own."""

    transport: Transport
    ranks: TensorRanks
    rows: int
    """That all have."""

    @property
    def back(self) -> Collected:
        """The way back."""
        return Collected(self.transport.back, self.ranks, self.rows)

    def start(self, rows: Tensor) -> Handle:
        """Begins to send this rank's of `[N, ...]`."""
        return self.transport.start(self.ranks.deal(rows))


@dataclass(frozen=True)
class Collected:
    """And back: what comes to one of them all get."""

    transport: Transport
    ranks: TensorRanks
    rows: int

    @property
    def back(self) -> Dealt:
        """The way out."""
        return Dealt(self.transport.back, self.ranks, self.rows)

    def start(self, rows: Tensor) -> Handle:
        """Begins to send rows back to where they came from."""
        return _Collecting(self.transport.start(rows), self.ranks, self.rows)


@dataclass(frozen=True)
class _Collecting:
    handle: Handle
    ranks: TensorRanks
    rows: int

    def wait(self) -> Tensor:
        return self.ranks.collect(self.handle.wait(), self.rows)
