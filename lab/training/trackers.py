"""Metrics to other places than `metrics.jsonl`: TensorBoard, trackio, Weights & Biases. Each is an extra of its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ...core.errors import BestiaryError, Problem
from .metrics import Line
from .options import LogOptions


class Tracker(Protocol):
    """Takes lines as they are written."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


def open_trackers(options: LogOptions, folder: Path, config: dict[str, Any], *, step: int) -> list[Tracker]:
    """Those that `log.to` names.

    Args:
        options: of the log.
        folder: of the run; its name is the run's.
        config: the recipe as data.
        step: steps taken before, when a run goes on.

    Raises:
        BestiaryError: a package is missing.
    """
    return [
        _TensorBoard(folder / "tensorboard", step) if name == "tensorboard" else _Service(name, options.project, folder, config)
        for name in options.to
    ]


def check_installed(names: Sequence[str]) -> None:
    """Raises a BestiaryError for the first package that is missing."""
    for name in names:
        _package("torch.utils.tensorboard" if name == "tensorboard" else name, name)


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        module = _package("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(folder), purge_step=step or None)

    def write(self, line: Line) -> None:
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, line.step)

    def close(self) -> None:
        self.writer.close()


class _Service:
    """trackio and wandb share an interface."""

    def __init__(self, name: str, project: str, folder: Path, config: dict[str, Any]) -> None:
        self.module = _package(name, name)
        self.module.init(project=project, name=folder.name, config=config)

    def write(self, line: Line) -> None:
        self.module.log(scalars(line), step=line.step)

    def close(self) -> None:
        self.module.finish()


def scalars(line: Line) -> dict[str, float]:
    """The figures of a line as `train/loss`, `eval/bits_per_byte`, `train/max_vio/3` ..."""
    found: dict[str, float] = {}
    for name, value in vars(line).items():
        if isinstance(value, (int, float)) and name != "step":
            found[f"{line.kind}/{name}"] = value
        elif isinstance(value, dict):
            found |= {f"{line.kind}/{name}/{key}": inner for key, inner in value.items() if isinstance(inner, (int, float))}
    return found


def _package(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BestiaryError(Problem(f"'{extra}' is not installed.", "log.to", f"Run pip install bestiary[{extra}].")) from error
