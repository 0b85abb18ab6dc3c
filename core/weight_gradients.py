"""Deferred weight gradients: the seam between linear layers and pipeline schedules.

A zero-bubble schedule wants the two halves of a linear layer's backward pass apart: the input gradient at once,
because an earlier stage waits for it, and the weight gradient whenever there is nothing better to do (Qi et al., 2023).
Layers made by a `Site` look here for a store. Without one they run as plain autograd; with one they build a
split backward, whose weight half is queued while the store is deferring and runs at once otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_active: WeightGradients | None = None


def active() -> WeightGradients | None:
    """The store for which forward passes now build split backwards, if any."""
    return _active


class WeightGradients:
    """Queued weight-gradient work: one set of closures per backward pass, run first in, first out."""

    def __init__(self) -> None:
        self._sets: deque[list[Callable[[], None]]] = deque()
        self._open: list[Callable[[], None]] | None = None

    def __len__(self) -> int:
        return len(self._sets)

    @contextmanager
    def splitting(self) -> Iterator[None]:
        """Forward passes inside build split backwards for this store."""
        global _active
        before, _active = _active, self
        try:
            yield
        finally:
            _active = before

    @contextmanager
    def deferring(self, into: list[Callable[[], None]] | None = None) -> Iterator[None]:
        """A backward pass inside leaves its weight gradients as one new set, or in a list of the caller's, who runs them himself."""
        self._open = [] if into is None else into
        try:
            yield
        finally:
            if into is None:
                self._sets.append(self._open)
            self._open = None

    def put(self, work: Callable[[], None]) -> None:
        """Queues `work`, or runs it at once when nothing is deferring."""
        if self._open is None:
            work()
        else:
            self._open.append(work)

    @torch.no_grad()
    def run_one(self) -> None:
        """Runs the oldest set."""
        for work in self._sets.popleft():
            work()

    def run_all(self) -> None:
        while self._sets:
            self.run_one()

    def clear(self) -> None:
        """Forgets everything, e.g. after a pass that only inferred shapes."""
        self._sets.clear()


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Adds to `parameter.grad` as autograd would; the closure must hold the parameter, not a saved copy of it."""
    gradient = gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


class SplitLinear(torch.autograd.Function):
    """`x @ weight.T` whose weight gradient goes through a `WeightGradients` store; computes in the dtype of `x`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: nn.Parameter, store: WeightGradients) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.weight, ctx.store = weight, store
        return nn.functional.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        (x,), weight = ctx.saved_tensors, ctx.weight

        if weight.requires_grad:
            ctx.store.put(lambda: accumulate(weight, grad.flatten(0, -2).T @ x.flatten(0, -2)))
        return (grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None), None, None
