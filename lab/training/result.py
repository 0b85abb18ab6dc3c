"""What a run leaves behind: `summary.json` beside its metrics and its model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import BestiaryError
from .metrics import Line, read_log

SUMMARY, METRICS, MODEL, AVERAGE, RECIPE = "summary.json", "metrics.jsonl", "model", "model-average", "recipe.json"
Status = Literal["finished", "interrupted", "diverged"]
"""`interrupted` runs go on when they are started again; the others have ended."""


@dataclass(frozen=True)
class Summary:
    """The figures of one run."""

    status: Status
    message: str
    """Why it stopped early; empty when finished."""
    model: str
    """Name of the manifest."""
    digest: str
    """Of recipe, manifest and data together."""
    manifest_digest: str
    data_digest: str
    steps: int
    """Taken."""
    tokens: int
    """Trained on."""
    flops: float
    """Spent on training."""
    seconds: float
    """Spent in training steps."""
    tokens_per_second: float
    bits_per_byte: float | None
    """Held-out, at the end; None when the run diverged."""
    bits_per_byte_average: float | None
    """The same with the averaged weights of `train.ema`."""
    skipped: list[int]
    """Steps that were left out because loss or gradients were not finite."""
    mfu: float
    """Counted FLOPs, causal attention, per second of training, as a share of `peak_flops`."""
    mfu_noncausal: float
    peak_flops: float
    """Product rate of the device, given or measured."""
    max_vio: float | None
    """Mean over layers of MaxVio, on the load of all steps since the last evaluation but one."""
    max_vio_sequence: float | None
    """Mean over layers and held-out sequences of MaxVio within a sequence."""
    agreement: dict[str, float]
    """By objective and depth, how often its most likely token was the main model's, held out."""
    parameters: int
    """Of the main model; what objectives add is left out."""
    active_parameters: int
    """Used by one token: with the head, without the input embedding."""
    objective_parameters: int
    flops_per_token: float
    """Of training, forward and backward, objectives included."""
    cache_bytes_per_token: float
    peak_memory: int
    """Bytes; of the whole process on a CPU."""
    left_out: int
    """Files of the data that are not UTF-8 text."""
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class RunResult:
    """A run on disk."""

    folder: Path
    summary: Summary

    def lines(self) -> list[Line]:
        """Everything that was logged."""
        return list(read_log(self.folder / METRICS))

    @property
    def model(self) -> Path:
        """Folder of the trained model, for `bestiary.load`; a diverged run has none."""
        return self.folder / MODEL


def write_summary(folder: Path, summary: Summary) -> None:
    write_json(folder / SUMMARY, asdict(summary))


def write_json(path: Path, data: Any) -> None:
    """Writes beside the file and renames, so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def read_run(folder: Path) -> RunResult | None:
    """The run in `folder`, or None when there is no complete one.

    Raises:
        BestiaryError: its summary cannot be read.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    try:
        return RunResult(folder, Summary(**json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise BestiaryError(f"{path}: this is no summary of a run: {error}. Remove the folder {folder}.") from error
