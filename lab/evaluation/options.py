"""What is asked of a model's memory: losses by position, and needles in haystacks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from ...core.component import Options

Depth = Annotated[float, Field(ge=0, le=1)]


class PositionsOptions(Options):
    length: int = Field(default=4096, gt=16)
    """Tokens that are read of each document; shorter documents are not used."""
    documents: int = Field(default=32, gt=0)
    """Held-out documents that are read, or all that are long enough when there are fewer."""


class NeedleOptions(Options):
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    """Tokens of a whole prompt: text, needle, question and answer."""
    depths: tuple[Depth, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where in the text the needle lies: 0.0 is its start, 1.0 its end, just before the question."""
    count: int = Field(default=8, gt=0)
    """Needles of each length and depth, each with a name, a value and a text of its own."""
    value_length: int = Field(default=8, gt=0)
    """Letters and digits of a value."""
    seed: int = Field(default=0, ge=0)
    """Of names, values and the choice of texts."""

    @field_validator("lengths", "depths")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)):
            raise ValueError("expected at least one, each larger than the one before")
        return value
