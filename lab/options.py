"""What a recipe may say: data, budget, optimizer, schedule, log. Nothing of it enters the model's digest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from ..core.component import Options
from ..core.manifest import Manifest
from ..registry.catalog import resolve as resolve_manifest

STDLIB = "stdlib"
BYTES = "bytes"


def _amount(value: Any) -> int | float:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    part = isinstance(value, float) and 0 <= value <= 1
    if whole or part:
        return value
    raise ValueError("expected a number of steps (an integer), or a part of the run (between 0.0 and 1.0)")


Amount = Annotated[int | float, PlainValidator(_amount)]
"""An integer counts steps; a fraction such as 0.05 is that part of the run."""
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


def steps_of(amount: int | float, steps: int) -> int:
    """An `Amount` of a run of `steps`, in steps."""
    return amount if isinstance(amount, int) else round(amount * steps)


class DataOptions(Options):
    source: Names = (STDLIB,)
    """Files and folders of text, or `stdlib`: the sources of the Python standard library on this machine."""
    suffixes: Names = (".py", ".md", ".txt")
    """Files that count in a folder."""
    tokenizer: str = BYTES
    """`bytes`, or the path of a `tokenizer.json` or its folder."""
    sequence_length: int = Field(default=256, gt=1)
    """Tokens of a row (S)."""
    seed: int = Field(default=0, ge=0)
    """Of the order of rows; models that are compared share it."""
    mask_documents: bool = False
    """Whether a token sees its own document only, and no document predicts the next one's first token."""
    held_out: float = Field(default=0.02, gt=0, lt=1)
    """Part of the documents kept for evaluation."""
    eval_tokens: int = Field(default=32768, gt=0)
    """Held-out tokens that each evaluation reads, rounded up to whole rows; fewer when there are fewer."""


class TrainOptions(Options):
    batch_size: int = Field(default=8, gt=0)
    """Rows of an optimizer step."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; or say `tokens`."""
    tokens: int | None = Field(default=None, gt=0)
    """Tokens to train on, rounded up to whole steps; or say `steps`."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the accelerator when there is one."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainOptions:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("expected either steps or tokens, the budget of the run. Set one of them")
        return self


class AdamWOptions(Options):
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of matrices; norms and biases do not decay."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""


class ScheduleOptions(Options):
    """Linear warm-up, constant, cosine to `final_ratio`, constant (DeepSeek-V3's report, section 4.2)."""

    warmup: Amount = 0.02
    """Length of the rise from zero."""
    decay: Amount = 0.4
    """Length of the cosine."""
    tail: Amount = 0.0
    """Length of the last constant phase."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Last learning rate as a part of the peak."""


class LogOptions(Options):
    every: int = Field(default=1, gt=0)
    """Steps between lines of metrics."""
    eval_every: Amount = 0.1
    """Steps between evaluations, the first before training; the last step is always evaluated, and alone when 0."""


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
    optimizer: AdamWOptions = AdamWOptions()
    """How a step is taken."""
    schedule: ScheduleOptions = ScheduleOptions()
    """The learning rate over the run."""
    log: LogOptions = LogOptions()
    """What is written down, and when."""
    out: str = ""
    """Folder for the results; `runs/<recipe's file name>` in the working directory when empty."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        phases = self.schedule
        used = sum(steps_of(amount, self.steps) for amount in (phases.warmup, phases.decay, phases.tail))
        if used > self.steps:
            raise ValueError(f"schedule: warmup, decay and tail take {used} steps, and the run has {self.steps}. Shorten one of them")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.data.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.steps or -(-(self.train.tokens or 0) // self.tokens_per_step)

    def manifest(self) -> Manifest:
        """The model to train, resolved.

        Raises:
            BestiaryError: with everything that is wrong with it.
        """
        return resolve_manifest(self.model, set=self.set)
