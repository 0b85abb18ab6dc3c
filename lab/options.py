"""A recipe: data, budget, optimizer, schedules, checkpoints, log. Nothing of it enters the model's digest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ..core.component import Options
from ..core.manifest import Manifest
from ..registry.catalog import resolve as resolve_manifest
from .amount import Stair, rising, steps_of
from .data.options import DataOptions
from .training.budget import Budget, plan_budget
from .training.options import CheckpointOptions, LogOptions, OptimizerOptions, ScheduleOptions, TrainOptions


def _dotted(value: Any, prefix: str = "") -> Any:
    """`{"a": {"b": x}}` as `{"a.b": x}`: dotted keys in TOML need no quotes."""
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _dotted(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found


class Recipe(Options):
    """One training run, checked; paths are absolute."""

    model: str
    """The manifest: a catalog name, a path, or a Hub id."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changes of the manifest."""
    data: DataOptions = DataOptions()
    """What is read."""
    train: TrainOptions
    """How much, and from which start."""
    optimizer: OptimizerOptions = OptimizerOptions()
    """How a step is taken."""
    schedule: ScheduleOptions = ScheduleOptions()
    """The learning rate over the run."""
    timeline: Annotated[dict[str, tuple[Stair, ...]], BeforeValidator(_dotted)] = Field(default_factory=dict)
    """Options of the manifest that change while training: `"objective.mtp.weight" = [[0, 0.3], [0.7, 0.1]]`, from tokens or parts on."""
    checkpoint: CheckpointOptions = CheckpointOptions()
    """What is kept to go on from."""
    log: LogOptions = LogOptions()
    """What is written down, and when."""
    out: str = ""
    """Folder for the results; `runs/<recipe's file name>` in the working directory when empty."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        for path, stairs in self.timeline.items():
            rising(stairs, f"timeline.{path}")
        phases, steps = self.schedule, self.budget.steps
        used = sum(steps_of(amount, steps) for amount in (phases.warmup, phases.decay, phases.tail, phases.cooldown))
        if used > steps:
            raise ValueError(f"schedule: warmup, decay, tail and cooldown take {used} steps, and the run has {steps}. Shorten one of them")
        return self

    @property
    def budget(self) -> Budget:
        """The rows of every step."""
        return plan_budget(self.train, self.data.sequence_length)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.budget.steps

    def manifest(self) -> Manifest:
        """The model to train, resolved.

        Raises:
            BestiaryError: with everything that is wrong with it.
        """
        return resolve_manifest(self.model, set=self.set)
