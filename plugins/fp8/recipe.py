"""Which tensors of a product become FP8 how, from the options; shared by dense and grouped layers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...core.exchange import Wire
from .backends import Backend, choose
from .options import TILE, FP8Options
from .quantize import Quantised, Rule, Tile
from .wire import Codes

Kept = Tensor | tuple[Quantised, torch.Size]
"""A tensor, or its codes and its shape."""
Along = Literal["channels", "tokens"]


class Recipe:
    """The quantisers of a model, and the backend that multiplies."""

    def __init__(self, options: FP8Options) -> None:
        self.options = options
        self.backend: Backend = choose(options)
        power_of_two = options.scales == "power-of-two"
        self.forward_rule = Rule(options.floor, power_of_two, "e4m3", options.preset)
        self.backward_rule = Rule(options.gradient_floor, power_of_two, options.gradient_format, options.preset)

    def weight(self, weight: Tensor) -> Quantised:
        """`[..., N, K]` parameters."""
        tiles: dict[str, Tile] = {"block": (TILE, TILE), "row": (1, None), "tensor": (None, None)}
        return self.backend.quantise(weight.detach(), tiles[self.options.weights], self.forward_rule)

    def activation(self, x: Tensor, along: Along = "channels") -> Quantised:
        """`[M, K]` inputs: tiles along channels to multiply with weights, along tokens for weight gradients."""
        return self.backend.quantise(x, tile_of(self.options.activations, along), self.forward_rule)

    def gradient(self, grad: Tensor, along: Along = "channels") -> Quantised:
        """`[M, N]` gradients of outputs."""
        return self.backend.quantise(grad, tile_of(self.options.gradients, along), self.backward_rule)

    @property
    def wire(self) -> Wire:
        """How rows may travel: as the very codes that a layer makes of them anyway, and makes again of what arrives, without loss."""
        options = self.options
        gradients = Codes(self.gradient, self.backward_rule.dtype) if options.dispatched_gradients == "fp8" else None
        return Wire(Codes(self.activation, self.forward_rule.dtype) if options.inputs_keep else None, gradients)

    def saving(self) -> AbstractContextManager[object]:
        """A context in which autograd keeps matrices of activations as codes: half the bytes of bf16."""
        if self.options.saved_swiglu == "bf16":
            return nullcontext()
        return saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, x: Tensor) -> Kept:
        """Codes of a bf16 matrix; columns, such as the weights of experts, stay as they are."""
        if x.dtype != torch.bfloat16 or x.shape[-1] == 1:
            return x
        return self.activation(x.reshape(-1, x.shape[-1])), x.shape

    def unpack(self, kept: Kept) -> Tensor:
        """What `pack` kept, in bf16."""
        if isinstance(kept, Tensor):
            return kept
        rows, shape = kept
        return self.backend.values(rows, torch.bfloat16).view(shape)


def tile_of(granularity: str, along: Along) -> Tile:
    """Rows and columns of a tile of activations or gradients."""
    tile: Tile = {"tile": (1, TILE), "block": (TILE, TILE), "row": (1, None), "tensor": (None, None)}[granularity]
    return tile if along == "channels" else (tile[1], tile[0])
