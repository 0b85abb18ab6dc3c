"""What a conversion will write: every tensor, and the rows of stored tensors that it is made of. Nothing is read for this."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...core.blocks import Block
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ...core.table import entries
from ...core.weights import Entry, Piece
from ..checkpoint import Checkpoint
from ..dtypes import FP8, SIZES
from ..header import Stored
from ..layout import QUANTISED, SCALE, original, scale_shape
from .options import Options


@dataclass(frozen=True)
class Part:
    """Neighbouring rows of a stored tensor that become neighbouring rows of a new one. A vector is one column."""

    source: Stored
    scale: Stored | None
    """Of a source in FP8."""
    first: int
    """Row of the source, all leading dimensions counted as rows."""
    at: int
    """Row of the new tensor."""
    rows: int


@dataclass(frozen=True)
class Made:
    """One tensor to write."""

    name: str
    dtype: str
    """safetensors' name."""
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    matrix: Made | None = None
    """For scales that are computed: the codes that they belong to."""
    quantised: bool = False
    """Whether its codes or scales are computed, not copied."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def targets(manifest: Manifest, checkpoint: Checkpoint, options: Options) -> list[Made]:
    """Every tensor of the new checkpoint, in the order of the model.

    Args:
        manifest: of the model, as it is stored now.
        checkpoint: what is there, under the Hub's names, complete.
        options: what is wanted.

    Raises:
        BestiaryError: FP8 blocks of two projections would overlap.
    """
    block = manifest.hub.weight_block_size
    return [made for entry in entries(manifest) for made in _entry(entry, manifest, checkpoint, options, block)]


def columns(shape: Sequence[int]) -> int:
    """Numbers in one row; a vector is one column."""
    return shape[-1] if len(shape) > 1 else 1


def height(shape: Sequence[int]) -> int:
    """Rows of one matrix."""
    return shape[-2] if len(shape) > 1 else shape[0]


def _entry(entry: Entry, manifest: Manifest, checkpoint: Checkpoint, options: Options, block: Block | None) -> Iterator[Made]:
    stored = _stored(entry, manifest, checkpoint)
    layout = next((pieces for pieces in stored.layouts() if all(piece.hub in checkpoint.tensors for piece in pieces)), None)
    assert layout is not None, entry.name
    shape = entry.weight.shape
    for piece in _layout(entry, options, [p.hub for p in layout] if stored is entry else None):
        begin, end = _rows(shape, piece)
        parts = []
        for source in layout:
            start, stop = _rows(shape, source)
            low, high = max(begin, start), min(end, stop)
            if low < high:
                tensor = checkpoint.tensors[source.hub]
                scale = checkpoint.tensors.get(source.hub + SCALE) if tensor.dtype == FP8 else None
                parts.append(Part(tensor, scale, low - start, low - begin, high - low))
        yield from _made(piece, tuple(parts), entry.weight.role, options, block)


def _stored(entry: Entry, manifest: Manifest, checkpoint: Checkpoint) -> Entry:
    """The entry whose stored tensors hold its numbers: its own, or that of which it is a copy."""
    if not entry.weight.duplicate_of or any(p.hub in checkpoint.tensors for pieces in entry.layouts() for p in pieces):
        return entry
    name = original(entry, manifest)
    return next(other for other in entries(manifest) if other.name == name)


def _layout(entry: Entry, options: Options, held: list[str] | None) -> list[Piece]:
    """The pieces to write: as asked for experts, else as they are stored."""
    layouts = entry.layouts()
    if len(entry.weight.shape) > 2 and options.experts:
        return max(layouts, key=len) if options.experts == "per-expert" else min(layouts, key=len)
    return next((pieces for pieces in layouts if [piece.hub for piece in pieces] == held), layouts[0])


def _rows(shape: tuple[int, ...], piece: Piece) -> tuple[int, int]:
    """First and last row (exclusive) of a piece in its parameter."""
    lead = shape[:-1] if len(shape) > 1 else shape
    start, count = 0, math.prod(lead)
    for size, index in zip(lead, piece.region, strict=False):
        low, high = (index, index + 1) if isinstance(index, int) else index.indices(size)[:2]
        start, count = start + low * (count // size), (high - low) * (count // size)
    return start, start + count


def _made(piece: Piece, parts: tuple[Part, ...], role: str, options: Options, block: Block | None) -> Iterator[Made]:
    source = parts[0].source.dtype
    if role not in QUANTISED or not (options.to == "fp8" or (options.to is None and source == FP8)):
        yield Made(piece.hub, _plain(source, role, options), piece.shape, parts)
        return
    wanted = options.block or block or (128, 128)
    _check_aligned(piece, parts, wanted)
    kept = source == FP8 and block == wanted and not options.power_of_two_scales
    kept = kept and all((part.first % height(part.source.shape)) % wanted[0] == 0 for part in parts)
    name, shape = piece.hub + SCALE, scale_shape(piece.shape, wanted)
    codes = Made(piece.hub, FP8, piece.shape, parts, quantised=not kept)
    yield codes
    if kept:
        yield Made(name, "F32", shape, tuple(_scale_part(part, piece.shape, wanted) for part in parts))
    else:
        yield Made(name, "F32", shape, parts, matrix=codes, quantised=True)


def _plain(source: str, role: str, options: Options) -> str:
    if options.to in (None, "fp8"):
        return options.plain if source == FP8 else source
    return "F32" if role == "state" else options.plain


def _check_aligned(piece: Piece, parts: tuple[Part, ...], block: Block) -> None:
    if any((part.at % height(piece.shape)) % block[0] for part in parts):
        fact = f"{piece.hub}: its projections have rows that do not fill blocks of {block[0]}, so that they would share scales."
        raise BestiaryError(Problem(fact, remedy="Write --experts per-expert, or another --block."))


def _scale_part(part: Part, shape: tuple[int, ...], block: Block) -> Part:
    """The rows of scales that belong to rows of codes which are copied."""
    assert part.scale is not None

    def row(index: int, rows: int) -> int:
        return index // rows * math.ceil(rows / block[0]) + index % rows // block[0]

    here, there = height(shape), height(part.source.shape)
    whole = min(here, there)
    count = part.rows // whole * math.ceil(whole / block[0]) if part.rows >= whole else math.ceil(part.rows / block[0])
    return Part(part.scale, None, row(part.first, there), row(part.at, here), count)
