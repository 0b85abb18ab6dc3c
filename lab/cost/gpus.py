"""Accelerators by name: peak rates and memory, with the vendor's figure that they are from (`gpus.toml`)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from pydantic import Field

from ...core.component import Options
from ...core.errors import BestiaryError, suggest


class Gpu(Options):
    """One accelerator."""

    name: str
    """As the vendor calls it."""
    bf16: float = Field(gt=0)
    """Peak of dense bf16 matrix products, FLOP/s."""
    fp8: float | None = Field(default=None, gt=0)
    """Peak of dense FP8 matrix products, FLOP/s; None where there are none."""
    memory: float = Field(gt=0)
    """Bytes."""
    source: str
    """Where the figures are from."""


@cache
def gpus() -> dict[str, Gpu]:
    """Every known accelerator."""
    text = Path(__file__).with_name("gpus.toml").read_text(encoding="utf-8")
    return {key: Gpu.model_validate(row) for key, row in tomllib.loads(text).items()}


def find_gpu(name: str) -> Gpu:
    """The accelerator called `name`, in any case.

    Raises:
        BestiaryError: it is unknown; names the nearest.
    """
    found = gpus().get(name.lower())
    if found is None:
        raise BestiaryError(f"There is no GPU '{name}' in the table. {suggest(name.lower(), gpus())}")
    return found
