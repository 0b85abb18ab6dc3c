"""Some tensors of a repository by byte ranges, written as smaller shards with an index of just these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import BestiaryError
from .checkpoint import INDEX, SINGLE, weight_map
from .header import AGAIN, LONGEST, Stored, make_header, parse_header, read_header
from .hub_errors import explained
from .progress import Advance, byte_bar
from .repository import Repository

PIECE = 16 << 20
"""Bytes of one request."""
THREADS = 8


@dataclass(frozen=True)
class Range:
    """Bytes of a remote file and where they go in the local one."""

    start: int
    stop: int
    to: int


def remote_header(repository: Repository, name: str, size: int) -> list[Stored]:
    """The tensors of a file that is not here, by two small reads.

    Raises:
        BestiaryError: it is no safetensors file.
    """
    path = Path(name)
    length = int.from_bytes(repository.read(name, 0, 8), "little") if size >= 8 else LONGEST + 1
    if length > min(LONGEST, size - 8):
        raise BestiaryError(f"{repository.reference}: {name}: a header of {length:,} bytes does not fit a file of {size:,}. {AGAIN}")
    return parse_header(path, repository.read(name, 8, 8 + length), size)


def fetch_ranges(repository: Repository, folder: Path, wanted: set[str] | None, to: Path, *, progress: bool = False) -> Path:
    """Writes the wanted tensors below `to`; shards that are complete there are kept.

    Args:
        repository: where they are.
        folder: the local folder with its index.
        wanted: names of tensors; None for all.
        to: is made if need be.
        progress: show a bar.

    Raises:
        BestiaryError: a header is damaged, or the repository cannot be read.
    """
    sizes = {file.path: file.size for file in repository.files()}
    table = weight_map(folder / INDEX) if INDEX in sizes else None
    files = sorted({f for name, f in table.items() if wanted is None or name in wanted}) if table else [SINGLE]
    missing = [name for name in files if name not in sizes]
    if missing:
        raise BestiaryError(f"{repository.reference}: these files are not there: {', '.join(missing[:5])}. Ask its owner to complete it.")
    parts = {}
    for name in files:
        chosen = [t for t in remote_header(repository, name, sizes[name]) if wanted is None or t.name in wanted]
        if chosen:
            parts[name] = chosen
    if not parts:
        raise BestiaryError(f"{repository.reference}: it holds none of the tensors that were asked for.")
    total = sum(tensor.nbytes for tensors in parts.values() for tensor in tensors)
    with explained(str(to)), byte_bar("pulling", total, progress) as advance:
        to.mkdir(parents=True, exist_ok=True)
        for name, tensors in parts.items():
            _write(repository, name, tensors, to / name, advance)
        _index(to, parts, total)
    return to


def _write(repository: Repository, name: str, tensors: Sequence[Stored], path: Path, advance: Advance | None) -> None:
    header, placed = make_header([(t.name, t.dtype, t.shape, t.nbytes) for t in tensors])
    if path.is_file() and _same(path, tensors):
        if advance:
            advance(sum(tensor.nbytes for tensor in tensors))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file, ThreadPoolExecutor(THREADS) as pool:
        file.write(header)
        file.flush()

        def copy(piece: Range) -> int:
            os.pwrite(file.fileno(), repository.read(name, piece.start, piece.stop), piece.to)
            return piece.stop - piece.start

        for done in pool.map(copy, _pieces(tensors, placed)):
            if advance:
                advance(done)
    part.replace(path)


def _pieces(tensors: Sequence[Stored], placed: Sequence[int]) -> Iterator[Range]:
    """Neighbours joined, and everything cut into requests."""
    runs: list[Range] = []
    for tensor, to in zip(tensors, placed, strict=True):
        if runs and runs[-1].stop == tensor.offset:
            runs[-1] = replace(runs[-1], stop=tensor.offset + tensor.nbytes)
        else:
            runs.append(Range(tensor.offset, tensor.offset + tensor.nbytes, to))
    for run in runs:
        for start in range(run.start, run.stop, PIECE):
            yield Range(start, min(start + PIECE, run.stop), run.to + start - run.start)


def _same(path: Path, tensors: Sequence[Stored]) -> bool:
    """Whether a file already holds tensors of these names, dtypes and shapes."""
    try:
        found = read_header(path)
    except BestiaryError:
        return False
    return [(t.name, t.dtype, t.shape) for t in found] == [(t.name, t.dtype, t.shape) for t in tensors]


def _index(to: Path, parts: dict[str, list[Stored]], total: int) -> None:
    if list(parts) == [SINGLE]:
        return
    table = {tensor.name: name for name, tensors in parts.items() for tensor in tensors}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": table}, separators=(",", ":"))
    part = to / f".{INDEX}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(to / INDEX)
