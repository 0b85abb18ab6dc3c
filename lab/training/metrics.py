"""The log of a run: one JSON object a line, written as the run goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.errors import BestiaryError


@dataclass(frozen=True)
class Line:
    """One line of `metrics.jsonl`. Every figure belongs to the state after `step` optimizer steps."""

    kind: Literal["train", "eval", "skip"]
    """`skip`: a step whose loss or gradients were not finite, and which was not taken."""
    step: int
    tokens: int
    """Trained on so far."""
    flops: float
    """Spent on training so far, as `bestiary.core.accounting` counts them."""
    seconds: float
    """Spent in training steps so far; evaluation and saving left out."""
    bits_per_byte: float | None = None
    """`eval`: held-out. `train`: of the step's batch, by the training text's mean bytes per token."""
    bits_per_byte_average: float | None = None
    """`eval`: held-out, with the averaged weights of `train.ema`."""
    loss: float | None = None
    """Total loss of the step."""
    parts: dict[str, float] = field(default_factory=dict)
    """Each objective's loss in nats per target; auxiliary losses as they enter the total."""
    grad_norm: float | None = None
    """Before clipping."""
    lr: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Counted FLOPs, causal attention, as a share of the device's product rate."""
    mfu_noncausal: float | None = None
    """The same with attention over the full square, as some reports count."""
    memory: int | None = None
    """Peak so far, bytes."""
    max_vio: dict[str, float] = field(default_factory=dict)
    """MaxVio of each layer, (largest expert load - mean load) / mean load: `train` of the step, `eval` of all steps since the last one."""
    expert_load: dict[str, list[float]] = field(default_factory=dict)
    """Share of held-out token copies that each expert of a layer got; sums to 1."""
    max_vio_sequence: float | None = None
    """MaxVio within one held-out sequence, mean over sequences and layers: high where experts specialise in kinds of text."""
    agreement: dict[str, float] = field(default_factory=dict)
    """By objective and depth (`mtp-1`): how often its most likely token is the main model's own, on held-out text."""
    message: str = ""
    """Why a step was skipped."""


class Log:
    """Appends lines to `metrics.jsonl`; each is with the system when `write` returns."""

    def __init__(self, folder: Path, *, after: int | None = None) -> None:
        """`after` keeps the lines of a run up to that step, which goes on from there; None starts an empty log."""
        path = folder / "metrics.jsonl"
        kept = [] if after is None or not path.exists() else [line for line in read_log(path) if line.step <= after]
        draft = path.with_name(f".{path.name}.part")
        draft.write_text("".join(_text(line) for line in kept), encoding="utf-8")
        draft.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        """Raises a BestiaryError when the disk takes no more."""
        try:
            self.file.write(_text(line))
            self.file.flush()
        except OSError as error:
            raise BestiaryError(f"{self.file.name}: metrics could not be written: {error}.") from error

    def close(self) -> None:
        self.file.close()


class NoLog(Log):
    """Of the ranks that write no files."""

    def __init__(self) -> None:
        """Opens nothing."""

    def write(self, line: Line) -> None:
        """Keeps nothing."""

    def close(self) -> None:
        """Closes nothing."""


def read_log(path: Path) -> Iterator[Line]:
    """The lines of a `metrics.jsonl`; a last one that was cut off is none."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                data: dict[str, Any] = json.loads(text)
                yield Line(**data)


def _text(line: Line) -> str:
    data = {key: value for key, value in asdict(line).items() if value not in (None, {}, "")}
    return json.dumps(data) + "\n"
