"""What a Hub repository of a model holds: every tensor with name, shape and dtype, from the manifest alone.

That includes what the model itself does not have: the copies of embedding and head in a multi-token-prediction layer, and
FP8 matrices with their scales, of which rows `i*r ... (i+1)*r` and columns `j*c ... (j+1)*c` share `scale_inv[i, j]`. Blocks at the
edges may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.manifest import Manifest
from ..core.table import entries
from ..core.weights import Entry, Piece
from .dtypes import FP8, SIZES, hub_name

QUANTISED = ("linear", "expert")
"""Roles whose matrices are FP8 in a block-quantised checkpoint; gates, norms, embeddings and plain projections are not."""

SCALE = "_scale_inv"
"""What the name of a matrix's scales ends with. Despite the name they are the factors of dequantisation."""

Block = tuple[int, int]


@dataclass(frozen=True)
class Published:
    """One tensor of a repository."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of the dtype."""
    part: str
    """What it belongs to: `attention`, `ffn`, ..., or an objective's name."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def published(manifest: Manifest) -> list[Published]:
    """Every tensor, in the order in which it is written."""
    return [tensor for entry in entries(manifest) for tensor in _entry(entry, manifest)]


def scale_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Shape of the scales of a matrix `[..., R, C]`: `[..., ceil(R / r), ceil(C / c)]`."""
    *lead, rows, columns = shape
    return (*lead, math.ceil(rows / block[0]), math.ceil(columns / block[1]))


def original(entry: Entry, manifest: Manifest) -> str:
    """The parameter of which a duplicate is a copy: with tied embeddings the head's is the embedding's."""
    tied = manifest.model.tie_word_embeddings and entry.weight.duplicate_of == "lm_head.weight"
    return "model.embed_tokens.weight" if tied else entry.weight.duplicate_of


def _entry(entry: Entry, manifest: Manifest) -> Iterator[Published]:
    block, role = manifest.hub.weight_block_size, entry.weight.role
    plain = "F32" if role == "state" else hub_name(manifest.hub.dtype)
    for piece in entry.pieces:
        if block and role in QUANTISED:
            yield from _quantised(piece, block, entry.part)
        else:
            yield Published(piece.hub, piece.shape, plain, entry.part)


def _quantised(piece: Piece, block: Block, part: str) -> Iterator[Published]:
    yield Published(piece.hub, piece.shape, FP8, part)
    yield Published(piece.hub + SCALE, scale_shape(piece.shape, block), "F32", part)
