"""Checkpoints of a run: everything that a step changes, through `torch.distributed.checkpoint`.

    out/checkpoints/step-00000400/   tensors as DCP writes them, and state.json

A checkpoint is written under another name and renamed when it is complete, so that whatever has the right name can be gone
on from, also after `kill -9` or on a full disk. DCP keeps its own index as a pickle: a checkpoint is for the machine that made it,
`model/` is what one gives away.
"""

from __future__ import annotations

import json
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from ...core.distributed import world
from ...core.errors import BestiaryError
from ..units import short
from .options import CheckpointOptions

FOLDER, STATE = "checkpoints", "state.json"
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")  # one process is meant
Tensors = dict[str, Any]
"""Tensors by name, nested."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    record: dict[str, Any]
    """What is not a tensor: step, seconds, digest of the run, held-out loss."""

    @property
    def step(self) -> int:
        return self.record["step"]

    def write(self, tensors: Tensors) -> None:
        """Writes tensors from all processes, without a record."""
        save(tensors, checkpoint_id=self.folder, no_dist=not world.active())

    def read(self, tensors: Tensors, *, alone: bool = False) -> None:
        """Fills `tensors`, which must have the names and shapes that were saved; `alone` where other processes do not.

        Raises:
            BestiaryError: the files do not hold them.
        """
        try:
            load(tensors, checkpoint_id=self.folder, no_dist=alone or not world.active())
        except (CheckpointException, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise BestiaryError(
                f"{self.folder}: this checkpoint cannot be read: {_cause(error)}. Remove it to go on from an earlier one."
            ) from error


class Checkpoints:
    """The checkpoints of one run: at most one is being written at any time."""

    def __init__(self, run: Path, options: CheckpointOptions) -> None:
        self.folder, self.options = run / FOLDER, options
        self._pending: tuple[Path, dict[str, Any], Future[Any]] | None = None

    def complete(self) -> list[Checkpoint]:
        """All that can be gone on from, the earliest first."""
        folders = sorted(self.folder.glob("step-*/")) if self.folder.is_dir() else []
        return [Checkpoint(path, json.loads((path / STATE).read_text(encoding="utf-8"))) for path in folders]

    def clear(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, tensors: Tensors, record: dict[str, Any]) -> None:
        """Writes a checkpoint, or starts to: `finish` waits for it.

        Raises:
            BestiaryError: this one or the one before cannot be written; earlier ones are intact.
        """
        self.finish()
        draft = self.folder / f".step-{record['step']:08d}.part"
        try:
            if world.lead():
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                self._check_room(tensors)
                (draft / STATE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            world.meet()
            written = self._write(tensors, draft)
        except (CheckpointException, OSError, RuntimeError) as error:
            raise self._failure(draft, error) from error
        self._pending = draft, record, written
        if not self.options.asynchronous or world.active():
            self.finish()

    def poll(self) -> None:
        """Completes a checkpoint whose writing has ended; raises as `save` does."""
        if self._pending and self._pending[2].done():
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint that is being written; raises as `save` does."""
        if self._pending is None:
            return
        (draft, record, written), self._pending = self._pending, None
        try:
            written.result()
            world.meet()
            if world.lead():
                draft.replace(self.folder / f"step-{record['step']:08d}")
            world.meet()
        except (CheckpointException, OSError, RuntimeError) as error:
            raise self._failure(draft, error) from error
        if world.lead():
            self._prune()

    def _write(self, tensors: Tensors, draft: Path) -> Future[Any]:
        if self.options.asynchronous and not world.active():
            return async_save(tensors, checkpoint_id=draft, no_dist=True)  # type: ignore[return-value]
        done: Future[Any] = Future()
        done.set_result(save(tensors, checkpoint_id=draft, no_dist=not world.active()))
        return done

    def _prune(self) -> None:
        found = self.complete()
        kept = {one.step for one in found[-self.options.keep_last :]}
        judged = [one for one in found if one.record["bits_per_byte"] is not None]
        if self.options.keep_best and judged:
            kept.add(min(judged, key=lambda one: one.record["bits_per_byte"]).step)
        for one in found:
            if one.step not in kept:
                gone = one.folder.replace(one.folder.with_name(f".{one.folder.name}.gone"))
                shutil.rmtree(gone, ignore_errors=True)

    def _check_room(self, tensors: Tensors) -> None:
        needed, free = _nbytes(tensors), shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"it needs {short(needed, 'B')} and the disk has {short(free, 'B')} left")

    def _failure(self, draft: Path, error: BaseException) -> BestiaryError:
        shutil.rmtree(draft, ignore_errors=True)
        last = self.complete()
        rest = f"The checkpoint of step {last[-1].step} is intact" if last else "There is no earlier one"
        return BestiaryError(
            f"{self.folder}: a checkpoint could not be written: {_cause(error)}. {rest}; free some space, and the same command goes on."
        )


def _nbytes(tree: Tensors) -> int:
    return sum(_nbytes(node) if isinstance(node, dict) else node.nbytes for node in tree.values())


def _cause(error: BaseException) -> str:
    """In the system's own words where it was the system that refused; DCP and torch's file format wrap what it says."""
    chain, at = [], error
    while at is not None and at not in chain:
        chain.append(at)
        wrapped = next(iter(at.failures.values()))[0] if isinstance(at, CheckpointException) and at.failures else None
        at = wrapped or at.__cause__ or at.__context__
    system = next((one for one in chain if isinstance(one, OSError)), None)
    return str(system) if system else f"{type(chain[-1]).__name__}: {chain[-1]}".splitlines()[0]
