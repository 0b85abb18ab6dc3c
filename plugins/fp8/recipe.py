"""Which tensors of a product become FP8 how, from the options; shared by dense and grouped layers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...core.exchange import Wire
from .backends import Backend, Made
from .backends.select import choose
from .memo import Memo
from .options import TILE, FP8Options
from .quantize import Quantised, Rule, Tile
from .swiglu import Gated
from .wire import Codes

Along = Literal["channels", "tokens"]


class Recipe:
    """The quantisers of a model, and the backend that multiplies."""

    def __init__(self, options: FP8Options) -> None:
        self.options = options
        self.backend: Backend = choose(options)
        self.memo = Memo()
        power_of_two = options.scales == "power-of-two"
        self.forward_rule = Rule(options.floor, power_of_two, "e4m3", options.preset)
        self.backward_rule = Rule(options.gradient_floor, power_of_two, options.gradient_format, options.preset)

    def weight(self, weight: Tensor, *, turned: bool = False) -> Quantised:
        """`[..., N, K]` parameters; `turned` says that the transposed matrix will be needed as well."""
        tiles: dict[str, Tile] = {"block": (TILE, TILE), "row": (1, None), "tensor": (None, None)}
        return self.backend.weight(weight.detach(), tiles[self.options.weights], self.forward_rule, turned=turned)

    def activation(self, x: Tensor) -> Quantised:
        """Inputs `[..., K]` as a matrix `[M, K]` of codes, in tiles along channels; once, however many layers read that tensor."""
        if (known := self.memo.get(x)) is None:
            known = self.backend.quantise(x.reshape(-1, x.shape[-1]), tile_of(self.options.activations, "channels"), self.forward_rule)
            self.memo.put(x, known)
        return known

    def gated(self, x: Gated) -> Made:
        """Matrices that SwiGLU reads to codes of what it makes of them, and what the backward pass keeps."""
        options, codes = self.options, self.options.saved_swiglu == "fp8" and x.inputs[0].dtype == torch.bfloat16
        tile = tile_of(options.activations, "channels")
        return self.backend.gated(x, tile, self.forward_rule, numbers=options.saved_input == "bf16", codes=codes)

    def normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
        """RMSNorm of `[..., K]` whose codes the layers that read it find made; None where the backend has nothing better than both."""
        made = self.backend.norm(x, weight, eps, tile_of(self.options.activations, "channels"), self.forward_rule)
        if made is None:
            return None
        y, codes = made
        self.memo.put(y, codes)
        return y

    @property
    def wire(self) -> Wire:
        """How rows may travel: as the very codes that a layer makes of them anyway, and makes again of what arrives, without loss."""
        options = self.options
        gradients = Codes(self.gradient, self.backward_rule.dtype) if options.dispatched_gradients == "fp8" else None
        return Wire(Codes(self.activation, self.forward_rule.dtype) if options.inputs_keep else None, gradients)

    def gradient(self, grad: Tensor) -> Quantised:
        """`[M, N]` gradients of outputs, in tiles along channels."""
        return self.backend.quantise(grad, tile_of(self.options.gradients, "channels"), self.backward_rule)


def tile_of(granularity: str, along: Along) -> Tile:
    """Rows and columns of a tile of activations or gradients."""
    tile: Tile = {"tile": (1, TILE), "block": (TILE, TILE), "row": (1, None), "tensor": (None, None)}[granularity]
    return tile if along == "channels" else (tile[1], tile[0])
