"""Forward passes that stop where they need other ranks, so that somebody else decides what is computed meanwhile.

A module that talks to other ranks writes its forward pass as a generator. At each exchange it yields what is sent, and what it needs
afterwards; it is resumed with both. Between two exchanges it holds no tensor of the pass but those, so that a schedule may cut
autograd's graph there and run the pieces of two passes in turns.

    rows, (x,) = yield Exchange((rows,), transport, keep=(x,))

`finish` runs such a pass to its end on its own, with autograd going through the exchanges.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Received = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""What came for what was sent, and what was kept."""


class Handle(Protocol):
    """An exchange on its way."""

    def wait(self) -> Tensor:
        """What came, once it is there."""
        ...


class Transport(Protocol):
    """Takes rows to other ranks. A linear map, whose transpose takes them back."""

    @property
    def back(self) -> Transport:
        """The way back, which is also the way of gradients."""
        ...

    def start(self, rows: Tensor) -> Handle:
        """Begins to send `[N, ...]`, sorted by destination; `[M, ...]`, sorted by origin, will come."""
        ...


@dataclass(frozen=True)
class Exchange:
    """A stop of a forward pass."""

    send: tuple[Tensor, ...]
    transport: Transport
    keep: tuple[Tensor, ...] = ()
    """Every other tensor of this pass that carries gradients and is needed afterwards."""

    def keeping(self, tensor: Tensor) -> Exchange:
        """The same stop of a pass that needs one tensor more."""
        return Exchange(self.send, self.transport, (*self.keep, tensor))


Steps = Generator[Exchange, Received, Tensor]
"""A forward pass with its stops."""


def finish(steps: Steps) -> Tensor:
    """Runs a pass to its end, waiting at each stop; gradients go back the same way."""
    try:
        stop = next(steps)
        while True:
            received: Any = _Exchanged.apply(stop.transport, *stop.send)
            stop = steps.send((received, stop.keep))
    except StopIteration as end:
        return end.value


def send_all(transport: Transport, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sends several tensors and waits for what comes."""
    return tuple(handle.wait() for handle in [transport.start(tensor) for tensor in tensors])


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transport: Transport, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.back = transport.back
        return send_all(transport, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *send_all(ctx.back, tuple(grad.contiguous() for grad in grads))
