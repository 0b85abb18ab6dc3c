"""What to do about a loss that is not finite: find the first module that produced it, and keep the batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...core.assemble import state
from ...core.contracts import Batch

BATCH, WHY = "batch.safetensors", "why.json"


def first_non_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """Where the first infinity or NaN arises, in words: a parameter, a module's output, or the gradient of one.

    Args:
        model: as it was when the step failed.
        run: forward and backward of the step, once more.
    """
    for name, tensor in state(model).items():
        if not _finite(tensor):
            return f"the parameter {name} is not finite itself"
    outputs: list[str] = []
    gradients: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not _finite(tensor):
                    outputs.append(name)
                elif tensor.requires_grad:
                    tensor.register_hook(lambda gradient: gradients.append(name) if not _finite(gradient) else None)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if outputs:
        return f"the first output that is not finite is that of {outputs[0]}"
    if gradients:
        return f"every output is finite; the first gradient that is not is that of the output of {gradients[0]}"
    named = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"every output and its gradient is finite; the gradient of {named[0]} is not" if named else "it did not happen a second time"


def keep_batch(folder: Path, batch: Batch, why: dict[str, Any]) -> None:
    """Writes the batch, for `read_batch`, and `why.json` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}, folder / BATCH)
    (folder / WHY).write_text(json.dumps(why, indent=2) + "\n", encoding="utf-8")


def read_batch(folder: str | Path) -> Batch:
    """The batch that `keep_batch` wrote."""
    return Batch(**load_file(Path(folder) / BATCH))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)
    elif is_dataclass(output):
        yield from (value for f in fields(output) if isinstance(value := getattr(output, f.name), Tensor))
