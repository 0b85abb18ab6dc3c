"""Forward passes that stop where they need other ranks, so that somebody else decides what is computed meanwhile.

A module that talks to other ranks writes its forward pass as a generator. At each exchange it yields what is sent, and what it needs
afterwards; it is resumed with both. Between two exchanges it holds no tensor of the pass but those, so that a schedule may cut
autograd's graph there and run the pieces of two passes in turns.

    (rows,), (x,) = yield Exchange((rows,), (transport,), keep=(x,))

`finish` runs such a pass to its end on its own, with autograd going through the exchanges.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
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


class Codec(Protocol):
    """Rows in fewer bytes, for the way."""

    def encode(self, rows: Tensor) -> Tensor:
        """`[N, C]` to `[N, bytes]` uint8."""
        ...

    def decode(self, codes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """`[N, bytes]` to `[N, width]`, what is left of the numbers that were encoded."""
        ...


@dataclass(frozen=True)
class Wire:
    """How rows may travel to a layer without a change of what it computes; None where they travel as they are."""

    inputs: Codec | None = None
    gradients: Codec | None = None
    """Of the gradients of the layer's outputs."""


@dataclass(frozen=True)
class Coded:
    """Another transport, by which rows travel in fewer bytes, there, back, or both."""

    transport: Transport
    there: Codec | None = None
    returning: Codec | None = None

    @property
    def back(self) -> Coded:
        """The way back."""
        return Coded(self.transport.back, self.returning, self.there)

    def start(self, rows: Tensor) -> Handle:
        """Begins to send `[N, C]`."""
        if self.there is None:
            return self.transport.start(rows)
        return _Decoding(self.transport.start(self.there.encode(rows)), self.there, rows.shape[1], rows.dtype)


@dataclass(frozen=True)
class _Decoding:
    handle: Handle
    codec: Codec
    width: int
    dtype: torch.dtype

    def wait(self) -> Tensor:
        return self.codec.decode(self.handle.wait(), self.width, self.dtype)


@dataclass(frozen=True)
class Exchange:
    """A stop of a forward pass."""

    send: tuple[Tensor, ...]
    """Gradients of floating-point numbers come back the same way."""
    transports: tuple[Transport, ...]
    """Of each."""
    keep: tuple[Tensor, ...] = ()
    """Every other tensor of this pass that carries gradients and is needed afterwards."""

    def keeping(self, tensor: Tensor) -> Exchange:
        """The same stop of a pass that needs one tensor more."""
        return Exchange(self.send, self.transports, (*self.keep, tensor))


Steps = Generator[Exchange, Received, Tensor]
"""A forward pass with its stops."""


def finish(steps: Steps) -> Tensor:
    """Runs a pass to its end, waiting at each stop; gradients go back the same way."""
    try:
        stop = next(steps)
        while True:
            received: Any = _Exchanged.apply(stop.transports, *stop.send)
            stop = steps.send((received, stop.keep))
    except StopIteration as end:
        return end.value


def start_all(transports: Iterable[Transport], tensors: Iterable[Tensor]) -> list[Handle]:
    """Begins to send several tensors, each by its transport."""
    return [transport.start(tensor) for transport, tensor in zip(transports, tensors, strict=True)]


def coded_gradient(x: Tensor, codec: Codec) -> Tensor:
    """`x`, whose gradient `[N, C]` will be what a codec leaves of it, as if it had travelled."""
    return _CodedGradient.apply(x, codec)  # type: ignore[return-value]


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transports: tuple[Transport, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        came = tuple(handle.wait() for handle in start_all(transports, tensors))
        ctx.backs = [transport.back if tensor.is_floating_point() else None for transport, tensor in zip(transports, came, strict=True)]
        ctx.mark_non_differentiable(*(tensor for tensor in came if not tensor.is_floating_point()))
        return came

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        handles = [None if back is None else back.start(grad.contiguous()) for back, grad in zip(ctx.backs, grads, strict=True)]
        return None, *(None if handle is None else handle.wait() for handle in handles)


class _CodedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codec: Codec) -> Tensor:
        ctx.codec = codec
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return ctx.codec.decode(ctx.codec.encode(grad), grad.shape[1], grad.dtype), None
