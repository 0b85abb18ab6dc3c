"""Loss by position: does a model predict better the more it has read, and how far does that go?

Held-out documents that are longer than the window are read from their start, so that every position is measured on the same
texts and nothing but the number of tokens before it differs. A model that cannot use its context levels off; one that is
taken beyond the positions it was made for gets worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.backbone import CausalLM
from ...core.errors import BestiaryError, Problem
from ..data.dataset import Data
from ..progress import tracked
from .scores import token_scores

FIRST = 16
"""Tokens of the first bin; each further one ends at twice as many."""


@dataclass(frozen=True)
class Documents:
    """The starts of long documents."""

    ids: NDArray[np.int64]
    """`[N, length + 1]`"""
    bytes: NDArray[np.int64]
    """`[N, length]`, bytes of text behind each token but the first."""


@dataclass(frozen=True)
class PositionLoss:
    """Bits per byte in bins of position; bin i holds tokens that follow on more than `edges[i]` and at most `edges[i + 1]` others."""

    edges: tuple[int, ...]
    bits_per_byte: tuple[float, ...]
    error: tuple[float, ...]
    """Standard error of each over documents."""
    documents: int

    @classmethod
    def read(cls, data: dict[str, Any]) -> PositionLoss:
        """From its JSON."""
        return cls(tuple(data["edges"]), tuple(data["bits_per_byte"]), tuple(data["error"]), data["documents"])


def long_documents(data: Data, length: int, count: int) -> Documents:
    """The first `count` held-out documents with more than `length` tokens.

    Raises:
        BestiaryError: there is none.
    """
    stream = np.asarray(data.held_out.stream)
    ends = np.flatnonzero(stream == data.end)
    starts = np.concatenate(([0], ends[:-1] + 1))
    long = [start for start, end in zip(starts, ends, strict=True) if end - start > length][:count]
    if not long:
        most = int((ends - starts).max(initial=0))
        raise BestiaryError(
            Problem(
                f"no held-out document has more than {length} tokens; the longest has {most}.",
                "positions.length",
                "Lower it and needle.lengths, raise data.held_out, or give longer texts.",
            )
        )
    places = np.array(long)[:, None] + np.arange(length + 1)
    return Documents(stream[places].astype(np.int64), np.asarray(data.held_out_bytes)[places[:, 1:]].astype(np.int64))


def loss_by_position(model: CausalLM, documents: Documents) -> PositionLoss:
    """Reads every document once, one after the other."""
    ids = torch.from_numpy(documents.ids)
    rows = [token_scores(model, row[None]).nats[0].double().numpy() for row in tracked(ids, "loss by position", total=len(ids))]
    edges = bin_edges(ids.shape[1] - 1)
    per_document = np.stack([_binned(np.stack(rows), edges), _binned(documents.bytes, edges)])
    nats, text = per_document.sum(axis=1)
    own = per_document[0] / np.maximum(per_document[1], 1) / math.log(2)
    error = own.std(axis=0, ddof=1) / math.sqrt(len(ids)) if len(ids) > 1 else np.zeros(len(nats))
    return PositionLoss(edges, tuple((nats / np.maximum(text, 1) / math.log(2)).tolist()), tuple(error.tolist()), len(ids))


def bin_edges(length: int) -> tuple[int, ...]:
    """`0, 16, 32, 64, ...` up to `length`."""
    edges = [0, FIRST]
    while edges[-1] < length:
        edges.append(2 * edges[-1])
    return (*edges[:-1], length)


def _binned(values: NDArray[Any], edges: tuple[int, ...]) -> NDArray[np.float64]:
    """`[N, length]` summed to `[N, bins]`."""
    return np.add.reduceat(values.astype(np.float64), edges[:-1], axis=1)
