"""The processes of a run, as `torchrun` started them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from ..errors import BestiaryError

TIMEOUT = 60.0
"""Seconds that a rank waits for another before it gives up."""


def active() -> bool:
    """Whether this process is one of several that compute together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if active() else 0


def size() -> int:
    """How many processes compute together."""
    return dist.get_world_size() if active() else 1


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first() -> bool:
    """Whether this process was started as the first of a run, or alone; before and after `joined` too."""
    return int(os.environ.get("RANK", 0)) == 0


def restarted() -> bool:
    """Whether this is another attempt of a run of which a process failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def joined(device: torch.device, timeout: float = TIMEOUT) -> Iterator[None]:
    """Joins the processes that `torchrun` started, for the time of the block; does nothing in a process that is alone.

    Args:
        device: of the model; gloo connects CPUs, NCCL GPUs.
        timeout: seconds that a rank waits for another.
    """
    if not launched() or active():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield
    finally:
        dist.destroy_process_group()


def lead() -> bool:
    """Whether this process writes the files of all."""
    return rank() == 0


def meet() -> None:
    """Waits until every process is here."""
    if active():
        dist.barrier()


def anyone(asked: bool) -> bool:
    """Whether it is so on any rank."""
    if not active():
        return asked
    votes = torch.tensor(float(asked))
    dist.all_reduce(votes)
    return bool(votes)


def merged(found: dict[str, Any]) -> dict[str, Any]:
    """The union of every rank's values by name, on every rank; of equal names the lowest rank's value."""
    union: dict[str, Any] = {}
    for one in reversed(everyone(found)):
        union |= one
    return union


def everyone(value: Any) -> list[Any]:
    """What every rank has, in the order of ranks."""
    if not active():
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def needs(processes: int, what: str) -> BestiaryError:
    """The error of a step that more processes than this one should take together."""
    return BestiaryError(
        f"parallelism.use = '{what}' takes steps in {processes} processes, and this one is alone. Start it with "
        f"`bestiary train RECIPE --nproc {processes}`, or set parallelism.use = 'local'."
    )
