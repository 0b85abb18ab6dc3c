"""What a push sends: the weights and small files of a folder, a run or a model, checked before anything leaves."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BestiaryError, Problem
from ..core.manifest import Manifest
from .checkpoint import INDEX, SINGLE, open_checkpoint
from .plan import make_plan
from .pull import small_files
from .record import RECORD, manifest_of, record
from .safe_json import read_object

if TYPE_CHECKING:
    import torch

    from ..core.backbone import CausalLM

SUMMARY, MODEL = "summary.json", "model"
"""A training run's figures, and its folder of weights."""
TOLD = (
    "steps", "tokens", "flops", "bits_per_byte", "bits_per_byte_average", "max_vio", "seconds", "device", "versions", "digest",
    "data_digest",
)  # fmt: skip
"""What of a run's figures travels with its weights."""
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


@dataclass(frozen=True)
class Shard:
    """A file of weights, in place or yet to be written."""

    name: str
    path: Path | None = None
    write: Callable[[Path], None] | None = None

    @contextmanager
    def local(self) -> Iterator[Path]:
        """Where it lies while it is sent; one that had to be written for this is gone afterwards."""
        if self.path is not None:
            yield self.path
            return
        assert self.write is not None
        with tempfile.TemporaryDirectory(prefix="bestiary-push-") as folder:
            path = Path(folder) / Path(self.name).name
            self.write(path)
            yield path


@dataclass(frozen=True)
class Outgoing:
    """Everything that one commit holds."""

    manifest: Manifest
    small: dict[str, bytes]
    """Configs, index, record, tokenizer, card and licence: name to content."""
    shards: tuple[Shard, ...]
    figures: dict[str, Any] = field(default_factory=dict)
    """Measured results of the run that made the weights; empty when there was none."""


def from_model(model: CausalLM, *, max_shard_size: int | str, dtype: torch.dtype | None) -> Outgoing:
    """What `save` would write, one shard at a time."""
    from .save import documents
    from .shards import Shards

    shards = Shards(model, max_shard_size, dtype)
    made = documents(model.manifest, shards)

    def writer(name: str) -> Callable[[Path], None]:
        return lambda path: shards.write(name, path)

    return Outgoing(made.manifest, made.files, tuple(Shard(name, write=writer(name)) for name in shards.files))


def from_folder(source: Path, *, locked: bool = False) -> Outgoing:
    """A folder of weights, or the model of a training run, after its headers were read and held against its manifest.

    Raises:
        BestiaryError: there are no weights, something is damaged, missing or unexpected, a file leads out of the folder, or
            one holds what looks like an access token.
    """
    folder, figures = _weights(source)
    manifest = manifest_of(folder, locked=locked)
    checkpoint = open_checkpoint(folder)
    make_plan(manifest, checkpoint, stored_as=manifest)
    names = sorted({tensor.file.relative_to(folder).as_posix() for tensor in checkpoint.tensors.values()})
    held = small_files([path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")])
    for name in (*names, *held):
        _check_inside(folder, name)
    small = {name: (folder / name).read_bytes() for name in held}
    for name, content in small.items():
        if TOKEN.search(content):
            remedy = "Remove it from the file, and revoke it on the Hub if the file was ever shared."
            raise BestiaryError(Problem("it holds what looks like an access token of the Hub.", str(folder / name), remedy))
    if RECORD not in small or figures:
        small[RECORD] = _record(folder, manifest, figures)
    return Outgoing(manifest, small, tuple(Shard(name, path=folder / name) for name in names), figures)


def _weights(source: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of weights that a source names, and the figures of its run."""
    if not source.is_dir():
        what = "this is a file" if source.exists() else "there is no such folder"
        raise BestiaryError(f"{source}: {what}. Give a folder of weights, or the folder of a training run.")
    folder = source
    if not any((source / name).exists() for name in (SINGLE, INDEX)) and (source / SUMMARY).is_file():
        folder = source / MODEL
        if not folder.is_dir():
            remedy = "Let `bestiary train` finish it, or give another run."
            raise BestiaryError(f"{source}: this run has no trained model: it diverged, or was cut off. {remedy}")
    for run in (source, source.parent):
        if (run / SUMMARY).is_file() and (run / MODEL).is_dir():
            summary = read_object(run / SUMMARY)
            return folder, {key: summary[key] for key in TOLD if summary.get(key) is not None}
    return folder, {}


def _check_inside(folder: Path, name: str) -> None:
    """A link may lead to the blobs of a cache or registry that the folder is a snapshot of, and nowhere else outside."""
    real, home = (folder / name).resolve(), folder.resolve()
    snapshot = home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")
    if not (real.is_relative_to(home) or snapshot):
        fact = f"it is a link to {real}, outside of the folder, and is not sent."
        raise BestiaryError(Problem(fact, str(folder / name), "Put the file itself there, or remove the link."))


def _record(folder: Path, manifest: Manifest, figures: dict[str, Any]) -> bytes:
    """The record of the folder, or a new one, with the figures of the run."""
    held = read_object(folder / RECORD) if (folder / RECORD).is_file() else record(manifest)
    told = {"figures": figures} if figures else {}
    return (json.dumps({**held, **told}, indent=2, ensure_ascii=False) + "\n").encode()
