"""AdamW that keeps its moments in bf16, as DeepSeek-V3 does (section 3.3.3): 4 instead of 8 bytes a parameter.

The arithmetic is fp32; only what stays between steps is rounded. With `betas = (0.9, 0.95)` a step moves a moment by 5 to 10 %,
well above bf16's spacing of 0.4 %; a second moment with `beta = 0.999` would stand still, and is refused. On a CPU a kernel does it
in one pass over memory; the torch operations are its definition.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.errors import BestiaryError, Problem
from ...core.native import library

SLOWEST = 0.99
"""The largest decay whose steps bf16 still resolves: 1 % of a moment is more than two of its spacings."""


class CompactAdamW(Optimizer):
    """Decoupled weight decay (Loshchilov and Hutter, 2019) with moments in bf16.

    Raises:
        BestiaryError: a moment decays too slowly for bf16.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
        if max(betas) > SLOWEST:
            fact = f"betas {betas}: bf16 moments stand still when they decay slower than {SLOWEST}."
            raise BestiaryError(Problem(fact, "optimizer.betas", "Lower them, or set optimizer.moments = 'float32'."))
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        count = int(state["step"])
        if _in_one_pass(parameter, gradient, state, group, count):
            return
        gradient = gradient.float()
        first = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].copy_(first)
        state["exp_avg_sq"].copy_(second)
        root = second.div_(1 - beta2**count).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**count))


@cache
def _kernel() -> ctypes.CDLL | None:
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        found.adamw.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] + [ctypes.c_float] * 6
    return found


def _in_one_pass(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], count: int) -> bool:
    """Takes the step by the kernel, where there is one for these tensors; False leaves everything as it is."""
    plain = all(t.dtype is torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in (parameter, gradient))
    kernel = _kernel() if plain else None
    if kernel is None:
        return False
    (beta1, beta2), lr = group["betas"], group["lr"]
    addresses = (t.data_ptr() for t in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"]))
    rates = (1 - lr * group["weight_decay"], lr / (1 - beta1**count), 1 / math.sqrt(1 - beta2**count))
    kernel.adamw(*addresses, parameter.numel(), beta1, beta2, *rates, group["eps"])
    return True
