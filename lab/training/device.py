"""Where a run computes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.contracts import Batch
from ...core.errors import BestiaryError, Problem


def choose(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` names.

    Raises:
        BestiaryError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fact = f"there is no device '{name}' here: {str(error).splitlines()[0]}"
        raise BestiaryError(Problem(fact, "train.device", "Set it to auto or cpu.")) from error
    return device


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    return Batch(batch.input_ids.to(device), batch.targets.to(device), moved(batch.segments), moved(batch.valid))
