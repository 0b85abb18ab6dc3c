"""What decoding remembers: per layer, a few named buffers that grow along the sequence.

A layer chooses what it keeps (keys and values, or MLA's latent and rotary key); `Cache` holds one `LayerCache` per
layer. Buffers are allocated once, so that a step copies one position and nothing else, and rewinding is a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class LayerCache:
    """Buffers `[B, capacity, ...]` of one layer, filled up to `length`."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], *, batch: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`shapes` gives, by name, the dimensions that follow `[B, T]`."""
        self.buffers = {name: torch.zeros(batch, capacity, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}
        self.capacity, self.length = capacity, 0

    def append(self, **new: Tensor) -> list[Tensor]:
        """Adds `[B, S, ...]` to each named buffer and returns views of all that is filled, `[B, length, ...]`.

        Raises:
            ValueError: the capacity is exceeded.
        """
        start, end = self.length, self.grow(next(iter(new.values())).shape[1])
        for name, tensor in new.items():
            self.buffers[name][:, start:end] = tensor
        return [self.buffers[name][:, :end] for name in new]

    def grow(self, added: int) -> int:
        """Makes room for `added` positions, to be written by the caller, and returns the new length.

        Raises:
            ValueError: the capacity is exceeded.
        """
        end = self.length + added
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {end} were asked for")
        self.length = end
        return end

    def crop(self, length: int) -> None:
        """Forgets everything after the first `length` positions."""
        self.length = min(self.length, length)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())


class Cache:
    """The caches of all layers."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def length(self) -> int:
        """Positions held."""
        return self.layers[0].length

    def crop(self, length: int) -> None:
        """Rewinds every layer to `length` positions."""
        for layer in self.layers:
            layer.crop(length)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
