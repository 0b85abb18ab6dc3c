"""From documents to ids: tokenizer, end token, and fill-in-the-middle for the documents that are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .document import Document
from .fim import FillInMiddle
from .tokens import Tokenizer, Tokens

BATCH_DOCUMENTS, BATCH_BYTES = 256, 4 * 2**20
"""Text that is tokenized at once, by all threads of the tokenizer; a batch ends with the document that reaches either."""


@dataclass(frozen=True)
class Sided:
    """A document on its side of the split."""

    document: Document
    held_out: bool


@dataclass(frozen=True)
class Encoding:
    """How text becomes ids."""

    tokenizer: Tokenizer
    end: int
    vocab_size: int
    fim: FillInMiddle | None

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds the vocabulary."""
        return np.min_scalar_type(self.vocab_size - 1)

    @property
    def settings(self) -> dict[str, Any]:
        """Equal for equal ids."""
        fim = asdict(self.fim) if self.fim else None
        return {"tokenizer": self.tokenizer.digest, "end": self.end, "dtype": self.dtype.name, "fim": fim}

    def encode(self, documents: Iterable[Sided]) -> Iterator[tuple[Sided, Tokens]]:
        """Each document with its ids, the end token not among them."""
        for batch in _batches(documents):
            pieces = [self._pieces(sided) for sided in batch]
            texts = [piece for own in pieces for piece in own if isinstance(piece, bytes)]
            ids = iter(self.tokenizer.encode(texts))
            for sided, own in zip(batch, pieces, strict=True):
                parts = [next(ids) if isinstance(piece, bytes) else np.array([piece]) for piece in own]
                yield sided, np.concatenate(parts).astype(self.dtype)

    def _pieces(self, sided: Sided) -> list[int | bytes]:
        rearranged = self.fim is not None and not sided.held_out
        return self.fim.pieces(sided.document) if rearranged and self.fim else [sided.document.text]


def _batches(documents: Iterable[Sided]) -> Iterator[list[Sided]]:
    batch: list[Sided] = []
    size = 0
    for sided in documents:
        batch.append(sided)
        size += len(sided.document.text)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
