"""What a recipe says about its run: budget, optimizer, schedules, checkpoints, log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...core.component import Options
from ..amount import Amount, Stair, rising
from ..data.options import Names

Tracker = Literal["tensorboard", "trackio", "wandb"]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class TrainOptions(Options):
    batch_size: int = Field(default=8, gt=0)
    """Rows of an optimizer step. `set.parallelism.micro_batches` splits them into forward passes whose gradients add up."""
    batch_schedule: tuple[Stair, ...] = ()
    """`[[from, rows], ...]`: rows of a step from that many tokens on (or that part of the budget); instead of `batch_size`."""
    steps: int = Field(default=0, ge=0)
    """Optimizer steps; or say `tokens`, and leave this at 0."""
    tokens: int = Field(default=0, ge=0)
    """Tokens to train on, rounded up to whole steps; or say `steps`, and leave this at 0."""
    start: str = ""
    """Folder or Hub id of weights to start from; fresh ones when empty."""
    init: Names = ()
    """What starts fresh although `start` is given: parts of the manifest (`block.attention`) or patterns on parameter names."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the accelerator when there is one."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay for each step of an exponential moving average of the weights, which is evaluated and saved beside them."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that a process waits for the others of its run before it gives up."""
    recompute: Literal["none", "block"] = "none"
    """`block` keeps only the input of each block for the backward pass, and computes the rest again."""
    compile: bool = False
    """Whether blocks go through `torch.compile`."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What happens to a step whose loss or gradients are not finite. Its batch is kept in either case."""
    max_skipped: int = Field(default=10, ge=0)
    """Steps that `skip` may leave out before the run stops after all."""
    peak_flops: float | None = Field(default=None, gt=0)
    """FLOPs per second that MFU is a share of; measured by products in the compute dtype when left out."""

    @model_validator(mode="after")
    def _one_budget(self) -> TrainOptions:
        if bool(self.steps) == bool(self.tokens):
            raise ValueError("expected either steps or tokens, the budget of the run. Set one of them, and the other to 0")
        if self.batch_schedule and not self.tokens:
            raise ValueError("a batch_schedule counts in tokens. Give the budget as tokens, not as steps")
        if any(rows != int(rows) or rows < 1 for _, rows in self.batch_schedule):
            raise ValueError("a batch_schedule holds whole numbers of rows, at least 1")
        rising(self.batch_schedule, "batch_schedule")
        return self


class MuonOptions(Options):
    """Muon (Jordan et al., 2024) for the matrices of blocks; everything else stays with AdamW."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate, on the scale that `adjust` says."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the moment."""
    nesterov: bool = True
    """Whether the step looks ahead."""
    ns_steps: int = Field(default=5, gt=0)
    """Newton-Schulz iterations that make a step orthogonal."""
    adjust: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """How a matrix's shape scales its step; `match_rms_adamw` allows AdamW's learning rate and weight decay (Liu et al., 2025)."""


class OptimizerOptions(Options):
    """AdamW, and Muon for matrices where `muon` is given."""

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
    moments: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which AdamW keeps its moments; DeepSeek-V3 keeps bf16 (section 3.3.3)."""
    muon: MuonOptions | None = None
    """Takes the matrices of blocks away from AdamW."""


class ScheduleOptions(Options):
    """Linear warm-up, constant, cosine to `final_ratio`, constant, and a last lower constant (DeepSeek-V3's report, section 4.2)."""

    warmup: Amount = 0.02
    """Length of the rise from zero."""
    decay: Amount = 0.4
    """Length of the cosine."""
    tail: Amount = 0.0
    """Length of the constant phase after it."""
    final_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate of `tail` as a part of the peak."""
    cooldown: Amount = 0.0
    """Length of the last phase."""
    cooldown_ratio: float = Field(default=0.033, ge=0, le=1)
    """Learning rate of `cooldown` as a part of the peak."""


class CheckpointOptions(Options):
    """From which a run goes on. They change no result, and are no part of a run's digest."""

    every: Amount = 0.1
    """Steps between checkpoints; none when 0."""
    keep_last: int = Field(default=1, ge=1)
    """The most recent ones that stay."""
    keep_best: bool = False
    """Whether the one with the lowest held-out loss stays too, among those taken at a step that was evaluated."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written, in one process; memory holds a copy of the state until then."""


class LogOptions(Options):
    every: int = Field(default=1, gt=0)
    """Steps between lines of metrics."""
    eval_every: Amount = 0.1
    """Steps between evaluations, the first before training; the last step is always evaluated, and alone when 0."""
    to: Trackers = ()
    """Where metrics go besides `metrics.jsonl`: `tensorboard` (in the run's folder), `trackio`, `wandb`."""
    project: str = "bestiary"
    """The project's name at `trackio` or `wandb`."""
