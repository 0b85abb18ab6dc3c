"""An exponential moving average of a model's weights (`train.ema`), kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...core.assemble import state
from ...core.backbone import CausalLM


class Average:
    """`average = decay * average + (1 - decay) * weights` after each step; it starts as the weights. Selection biases are among them."""

    def __init__(self, model: CausalLM, decay: float) -> None:
        self.live = [tensor for tensor in state(model).values() if tensor.is_floating_point()]
        names = [name for name, tensor in state(model).items() if tensor.is_floating_point()]
        self.tensors: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in zip(names, self.live, strict=True)}
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        self._update(list(self.tensors.values()), self.live, None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, live in zip(self.tensors.values(), self.live, strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)
