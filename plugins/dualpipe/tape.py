"""Forward and backward passes in pieces, cut where other ranks are waited for.

Autograd runs a backward pass in one go. Here every piece between two exchanges has a graph of its own, from detached inputs to outputs, and
the tape remembers them; going back, the tape runs autograd piece by piece and sends gradients where activations were sent. Both ways are
generators that yield while an exchange is under way, so that a driver can run a forward and a backward pass in turns in one thread.

    with deferred weight gradients the pieces of a backward pass leave them in `deferred`, for whenever there is time

No context manager stays open across a yield: whatever runs meanwhile must not find gradients switched off, or another's store.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...core.exchange import Exchange, Handle, Received, Steps, Transport, start_all
from ...core.weight_gradients import WeightGradients
from .stage import Segment

Turns = Generator[None, None, Tensor]
"""A pass that yields at every exchange under way, and ends with its result."""


@dataclass
class Piece:
    """A graph between two cuts."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    transports: tuple[Transport, ...] = ()
    """By which its first outputs left; none at the end of a segment."""


@dataclass
class _Again:
    """A segment of which only the input was kept."""

    segment: Segment
    input: Tensor


@dataclass
class Tape:
    """One micro-batch's pass through one stage."""

    store: WeightGradients = field(default_factory=WeightGradients)
    deferred: list[Callable[[], None]] = field(default_factory=list)
    """Weight gradients that a backward pass with `defer` left."""
    _done: list[Piece | _Again] = field(default_factory=list)

    def forward(self, segments: Iterable[Segment], x: Tensor) -> Turns:
        """Runs all segments, remembering what the way back needs."""
        for segment in segments:
            if segment.recompute:
                self._done.append(_Again(segment, x.detach().requires_grad_(x.requires_grad)))
                x = (yield from unrecorded([segment], x)).requires_grad_(True)
            else:
                x = yield from self._recorded(segment, x)
        return x

    def backward(self, grad: Tensor | None, *, defer: bool) -> Generator[None, None, Tensor | None]:
        """The gradient of the input, from that of the output; None for the output stands for a loss."""
        while self._done:
            last = self._done.pop()
            if isinstance(last, _Again):
                again = Tape(self.store, self.deferred)
                yield from again._recorded(last.segment, last.input)
                grad = yield from again.backward(grad, defer=defer)
            else:
                grad = yield from self._back(last, grad, defer)
        return grad

    def _recorded(self, segment: Segment, x: Tensor) -> Turns:
        inputs = (x.detach().requires_grad_(x.requires_grad),)
        steps, received = segment.run(inputs[0]), None
        while True:
            with self.store.splitting(), torch.enable_grad():
                stop = _resume(steps, received)
            if isinstance(stop, Tensor):
                self._done.append(Piece(inputs, (stop,)))
                return stop.detach().requires_grad_(stop.requires_grad)
            self._done.append(Piece(inputs, (*stop.send, *stop.keep), stop.transports))
            handles = start_all(stop.transports, [tensor.detach() for tensor in stop.send])
            yield
            came = tuple(h.wait().requires_grad_(t.requires_grad) for h, t in zip(handles, stop.send, strict=True))
            kept = tuple(t.detach().requires_grad_(t.requires_grad) for t in stop.keep)
            inputs, received = (*came, *kept), (came, kept)

    def _back(self, last: Piece, grad: Tensor | None, defer: bool) -> Generator[None, None, Tensor | None]:
        pieces, grads = [last], (grad,)
        while self._done and isinstance(self._done[-1], Piece) and self._done[-1].transports:
            pieces.append(self._done.pop())  # type: ignore[arg-type]
        for place, piece in enumerate(pieces):
            self._autograd(piece, grads, defer)
            before = pieces[place + 1] if place + 1 < len(pieces) else None
            if before is None:
                return piece.inputs[0].grad
            sent = len(before.transports)
            handles = [_home(*pair) for pair in zip(before.transports, piece.inputs[:sent], strict=True)]
            yield
            grads = (*map(_arrived, handles), *(tensor.grad for tensor in piece.inputs[sent:]))
        raise AssertionError("unreachable")

    def _autograd(self, piece: Piece, grads: tuple[Tensor | None, ...], defer: bool) -> None:
        loss = grads == (None,)
        pairs = [
            (output, grad) for output, grad in zip(piece.outputs, grads, strict=True) if output.requires_grad and (loss or grad is not None)
        ]
        if not pairs:
            return
        with ExitStack() as contexts:
            contexts.enter_context(self.store.splitting())
            if defer:
                contexts.enter_context(self.store.deferring(self.deferred))
            torch.autograd.backward([output for output, _ in pairs], None if loss else [grad for _, grad in pairs])  # type: ignore[arg-type]


def unrecorded(segments: Iterable[Segment], x: Tensor) -> Turns:
    """A forward pass that nothing goes back through."""
    for segment in segments:
        steps, received = segment.run(x.detach()), None
        while True:
            with torch.no_grad():
                stop = _resume(steps, received)
            if isinstance(stop, Tensor):
                x = stop
                break
            handles = start_all(stop.transports, stop.send)
            yield
            received = tuple(handle.wait() for handle in handles), stop.keep
    return x


def _resume(steps: Steps, received: Received | None) -> Exchange | Tensor:
    """The next stop of a pass, or its result."""
    try:
        return next(steps) if received is None else steps.send(received)
    except StopIteration as end:
        return end.value


def _home(transport: Transport, tensor: Tensor) -> Handle | None:
    """Sends the gradient of what came back to where it came from; integers have none."""
    if not tensor.is_floating_point():
        return None
    return transport.back.start(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous())


def _arrived(handle: Handle | None) -> Tensor | None:
    return None if handle is None else handle.wait()


def alone(turns: Generator[None, None, Tensor | None]) -> Tensor | None:
    """Runs one pass to its end."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            return end.value


def in_turns(*passes: Generator[None, None, Tensor | None]) -> list[Tensor | None]:
    """Runs passes in turns, each up to its next exchange; their order is the same on every rank, whatever takes how long."""
    results: list[Tensor | None] = [None] * len(passes)
    waiting = list(enumerate(passes))
    while waiting:
        place, turns = waiting.pop(0)
        try:
            next(turns)
            waiting.append((place, turns))
        except StopIteration as end:
            results[place] = end.value
    return results
