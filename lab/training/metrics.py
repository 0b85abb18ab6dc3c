"""The log of a run: one JSON object a line, written as the run goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Line:
    """One line of `metrics.jsonl`. Every figure belongs to the state after `step` optimizer steps."""

    kind: Literal["train", "eval"]
    step: int
    tokens: int
    """Trained on so far."""
    flops: float
    """Spent on training so far, as `bestiary.core.accounting` counts them."""
    seconds: float
    """Spent in training steps so far; evaluation and saving left out."""
    bits_per_byte: float
    """`eval`: held-out. `train`: of the step's batch, by the training text's mean bytes per token."""
    loss: float | None = None
    """Total loss of the step."""
    parts: dict[str, float] = field(default_factory=dict)
    """Each objective's loss in nats per target; auxiliary losses as they enter the total."""
    grad_norm: float | None = None
    """Before clipping."""
    lr: float | None = None
    tokens_per_second: float | None = None
    max_vio_mean: float | None = None
    """Mean over layers of (largest expert load - mean load) / mean load."""
    max_vio_max: float | None = None


class Log:
    """Appends lines to `metrics.jsonl`; each is on disk when `write` returns."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "metrics.jsonl").open("w", encoding="utf-8")

    def write(self, line: Line) -> None:
        data = {key: value for key, value in asdict(line).items() if value is not None and value != {}}
        self.file.write(json.dumps(data) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_log(path: Path) -> Iterator[Line]:
    """The lines of a `metrics.jsonl`."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            data: dict[str, Any] = json.loads(text)
            yield Line(**data)
