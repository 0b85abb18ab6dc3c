"""Activation checkpointing by block: the backward pass starts from each block's input and computes the rest again.

A layer runs twice with the same `Context`, whose `once` and `first` keep side effects (loads, auxiliary losses) from
happening twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from .backbone import Block, CausalLM


def recompute_blocks(model: CausalLM) -> None:
    """Makes every block keep only its input while training; results stay the same."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = True
            vars(module)["forward"] = partial(_forward, module, module.forward)


def _forward(block: Block, forward: Any, *arguments: Any) -> Any:
    return checkpoint(forward, *arguments, use_reentrant=False) if block.training else forward(*arguments)
