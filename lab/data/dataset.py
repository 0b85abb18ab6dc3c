"""The data of a run: a corpus, tokenized, split by document, and packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...core.contracts import Batch
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ..options import Recipe
from .corpus import Corpus, Document, read_corpus
from .packing import Order, Rows, join
from .tokens import Tokenizer, end_token, open_tokenizer


@dataclass(frozen=True)
class Data:
    """Everything that training and evaluation read."""

    train: Rows
    held_out: Rows
    held_out_bytes: np.ndarray
    """Bytes of text behind each token of the held-out stream; 0 for end tokens."""
    order: Order
    eval_rows: int
    """Held-out rows that an evaluation reads, the same ones each time."""
    bytes_per_token: float
    """Of the training text, end tokens counted as tokens."""
    tokenizer: Tokenizer
    end: int
    left_out: list[str]
    """Files that are not UTF-8 text."""
    digest: str

    def batch(self, start: int, rows: int) -> Batch:
        """The next `rows` training rows, after `start` have been read before."""
        return self.train.batch(self.order.take(start, rows))

    def evaluation(self, batch_size: int) -> Iterator[tuple[Batch, int]]:
        """Held-out batches, and the bytes of text behind the targets of each."""
        for start in range(0, self.eval_rows, batch_size):
            rows = range(start, min(start + batch_size, self.eval_rows))
            batch = self.held_out.batch(rows)
            yield batch, self._target_bytes(rows, batch)

    def _target_bytes(self, rows: range, batch: Batch) -> int:
        length = self.held_out.length
        behind = self.held_out_bytes[rows.start * length + 1 : rows.stop * length + 1]
        return int(behind[(batch.targets.numpy() >= 0).ravel()].sum())


def open_data(recipe: Recipe, manifest: Manifest) -> Data:
    """Reads, tokenizes, splits and packs the recipe's text for a model.

    Raises:
        BestiaryError: no text, an unreadable file, a tokenizer that does not fit the model, or text shorter than a row.
    """
    options, vocab = recipe.data, manifest.model.vocab_size
    limit = manifest.model.max_position_embeddings
    if options.sequence_length > limit:
        fact = f"{options.sequence_length} tokens exceed the model's {limit} positions."
        raise BestiaryError(Problem(fact, "data.sequence_length", f"Set at most {limit}."))
    tokenizer = open_tokenizer(options.tokenizer)
    end = end_token(tokenizer, manifest)
    corpus = read_corpus(options)
    train, held_out = split(corpus, options.held_out)
    ids = tokenizer.encode([document.text for document in [*train, *held_out]])
    rows = [_rows(part, name, recipe, end, vocab) for part, name in ((ids[: len(train)], "training"), (ids[len(train) :], "held-out"))]
    behind = [np.append(tokenizer.lengths(document.text), 0) for document in held_out]
    return Data(
        train=rows[0],
        held_out=rows[1],
        held_out_bytes=np.concatenate(behind),
        order=Order(len(rows[0]), options.seed),
        eval_rows=min(len(rows[1]), -(-options.eval_tokens // options.sequence_length)),
        bytes_per_token=sum(len(document.text) for document in train) / len(rows[0].stream),
        tokenizer=tokenizer,
        end=end,
        left_out=corpus.left_out,
        digest=data_digest(recipe, corpus, tokenizer),
    )


def split(corpus: Corpus, held_out: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents.

    A document is held out when its `place` is below `held_out`, so that adding others never moves it; where that
    leaves one side empty, the document of the lowest place is held out. A single document is cut, its end held out.
    """
    documents = corpus.documents
    if len(documents) == 1:
        return _cut(documents[0], held_out)
    count = sum(document.place < held_out for document in documents)
    count = min(max(count, 1), len(documents) - 1)
    return documents[count:], documents[:count]


def data_digest(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """sha256 of text, tokenizer and how both are used; equal for runs that see the same data in the same order."""
    options = recipe.data.model_dump(mode="json", exclude={"source", "tokenizer", "suffixes"})
    parts = (corpus.digest, tokenizer.digest, options)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _cut(document: Document, held_out: float) -> tuple[list[Document], list[Document]]:
    text = document.text.decode()
    at = round(len(text) * (1 - held_out))
    halves = [Document(f"{document.name}[{name}]", half.encode()) for name, half in (("start", text[:at]), ("end", text[at:]))]
    return [halves[0]], [halves[1]]


def _rows(ids: list, name: str, recipe: Recipe, end: int, vocab: int) -> Rows:
    options = recipe.data
    rows = Rows(join(ids, end, vocab), options.sequence_length, end, options.mask_documents)
    if not len(rows):
        raise BestiaryError(
            Problem(
                f"the {name} text has {len(rows.stream)} tokens, and a row needs {options.sequence_length + 1}.",
                "data.source",
                "Give more text, lower data.sequence_length, or change data.held_out.",
            )
        )
    return rows
