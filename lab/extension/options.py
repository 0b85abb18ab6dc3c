"""What an extension file says."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...core.component import Options
from ...core.layers.rope import YarnScaling
from ..evaluation.options import NeedleOptions, PositionsOptions


class YarnOptions(YarnScaling):
    type: Literal["yarn"] = "yarn"
    """Which way of stretching."""

    @property
    def positions(self) -> int:
        """The longest context that the settings are for."""
        return int(self.factor * self.original_max_position_embeddings)


class PhaseOptions(Options):
    sequence_length: int = Field(gt=1)
    """Tokens of a row."""
    batch_size: int = Field(gt=0)
    """Rows of an optimizer step."""
    steps: int = Field(gt=0)
    """Optimizer steps."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    micro_batches: int = Field(default=1, gt=0)
    """Equal parts of a step's rows that run one after the other, for memory."""


class ExtendOptions(Options):
    title: str = ""
    """Heading of the report; the file's name when empty."""
    description: str = ""
    """A sentence or two for the report."""
    start: str
    """The trained model: a folder of `bestiary train`, or of weights."""
    yarn: YarnOptions
    """How positions are stretched: `block.attention.rope.scaling` of the longer model."""
    phases: tuple[PhaseOptions, ...] = Field(min_length=1)
    """One training run after the other, each from the weights of the one before."""
    data: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe, for all phases."""
    train: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe: seed, device, recompute and the like."""
    optimizer: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe."""
    schedule: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe."""
    checkpoint: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe."""
    log: dict[str, Any] = Field(default_factory=dict)
    """As in a recipe."""
    positions: PositionsOptions = PositionsOptions()
    """Loss by position, before and after each phase."""
    needle: NeedleOptions = NeedleOptions()
    """Needle in a haystack, before and after each phase."""
    out: str = ""
    """Folder for runs and report; `runs/<file name>` in the working directory when empty."""
