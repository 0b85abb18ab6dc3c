"""Writes one rank's row of a table, counting micro-batches by itself."""

from __future__ import annotations

from collections import deque

from .actions import Action, Kind, Pair, Row


class Writer:
    """The stages of a rank are its *phases*; each phase takes its micro-batches in order, forward and backward."""

    def __init__(self, *stages: int) -> None:
        self.stages = stages
        self.items: list[Action | Pair] = []
        self._forward, self._backward = [0] * len(stages), [0] * len(stages)
        self._waiting: deque[Action] = deque()

    def forward(self, phase: int) -> None:
        """A forward pass."""
        self.items.append(self._next(phase))

    def backward(self, phase: int, *, later: bool = False) -> None:
        """A backward pass, with its weight gradients `later` or at once."""
        self.items.append(self._next_back(phase, Kind.INPUT if later else Kind.BACKWARD))

    def weights(self, phase: int | None = None) -> None:
        """The weight gradients that have waited longest, of all or of one phase."""
        stages = self.stages if phase is None else (self.stages[phase],)
        done = next(action for action in self._waiting if action.stage in stages)
        self._waiting.remove(done)
        self.items.append(Action(done.stage, Kind.WEIGHT, done.microbatch))

    def pair(self, forward: int, backward: int) -> None:
        """A forward pass of one phase overlapped with a backward pass of the other."""
        self.items.append(Pair(self._next(forward), self._next_back(backward, Kind.BACKWARD)))

    def waiting(self, phase: int) -> int:
        """How many sets of weight gradients of a phase wait."""
        return sum(action.stage == self.stages[phase] for action in self._waiting)

    @property
    def row(self) -> Row:
        """What was written."""
        return tuple(self.items)

    def _next(self, phase: int) -> Action:
        self._forward[phase] += 1
        return Action(self.stages[phase], Kind.FORWARD, self._forward[phase] - 1)

    def _next_back(self, phase: int, kind: Kind) -> Action:
        self._backward[phase] += 1
        action = Action(self.stages[phase], kind, self._backward[phase] - 1)
        if kind == Kind.INPUT:
            self._waiting.append(action)
        return action
