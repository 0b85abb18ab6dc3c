"""The data of a run: a corpus, tokenized, split by document, and packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from ...core.contracts import Batch
from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ..options import Recipe
from .cache import Tokenized, cache_folder, tokenized
from .corpus import Corpus, open_corpus
from .encoding import Encoding
from .fim import fill_in_middle
from .options import DataOptions
from .order import Order
from .packing import Rows
from .tokens import ByteTokenizer, Tokenizer, Tokens, end_token, open_tokenizer

T = TypeVar("T")
ELSEWHERE = {"source", "suffixes", "text_field", "hf", "limit_documents", "limit_bytes", "tokenizer", "cache"}
"""Options whose effect the digests of text and tokenizer hold already."""


@dataclass(frozen=True)
class Data:
    """Everything that training and evaluation read. Batches are a function of position alone: nothing here changes."""

    train: Rows
    held_out: Rows
    held_out_bytes: Tokens
    """Bytes of text behind each token of the held-out stream; 0 for end tokens."""
    order: Order
    eval_rows: int
    """Held-out rows that an evaluation reads, the same ones each time."""
    bytes_per_token: float
    """Of the training text, end tokens and those of fill-in-the-middle counted as tokens."""
    tokenizer: Tokenizer
    end: int
    left_out: list[str]
    """Files that are not UTF-8 text."""
    digest: str
    """sha256 of text, tokenizer and how both are used; equal for runs that see the same data in the same order."""

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
    """Opens the recipe's text for a model: read, split and tokenized, unless all that was done before.

    Raises:
        BestiaryError: with everything that is wrong before text is read: sources, tokenizer, model and options that do not
            fit together; then an unreadable file or line, no text, or text shorter than a row.
    """
    options = recipe.data
    corpus, encoding = _fitting(options, manifest)
    tokens = tokenized(corpus, encoding, held_out=options.held_out, folder=cache_folder(options))
    train, held_out = _rows(tokens.train, "training", options, encoding.end), _rows(tokens.held_out, "held-out", options, encoding.end)
    return Data(
        train=train,
        held_out=held_out,
        held_out_bytes=tokens.held_out_bytes,
        order=Order(len(train), options.seed),
        eval_rows=min(len(held_out), -(-options.eval_tokens // options.sequence_length)),
        bytes_per_token=tokens.train_bytes / len(tokens.train),
        tokenizer=encoding.tokenizer,
        end=encoding.end,
        left_out=corpus.left_out,
        digest=_digest(options, tokens, encoding.tokenizer),
    )


def _fitting(options: DataOptions, manifest: Manifest) -> tuple[Corpus, Encoding]:
    """Sources and how they are encoded, or everything that does not fit."""
    problems: list[Problem] = []

    def attempt(ask: Callable[..., T], *args: object) -> T | None:
        try:
            return ask(*args)
        except BestiaryError as error:
            problems.extend(error.problems)
            return None

    limit = manifest.model.max_position_embeddings
    if options.sequence_length > limit:
        fact = f"{options.sequence_length} tokens exceed the model's {limit} positions."
        problems.append(Problem(fact, "data.sequence_length", f"Set at most {limit}."))
    corpus, tokenizer = attempt(open_corpus, options), attempt(open_tokenizer, options.tokenizer)
    encoding = attempt(_encoding, options, manifest, tokenizer) if tokenizer is not None else None
    if problems or corpus is None or encoding is None:
        raise BestiaryError(*problems)
    return corpus, encoding


def _encoding(options: DataOptions, manifest: Manifest, tokenizer: Tokenizer) -> Encoding:
    end = end_token(tokenizer, manifest)
    fim = fill_in_middle(options, tokenizer, manifest, end)
    if fim is not None and isinstance(tokenizer, ByteTokenizer):
        tokenizer = replace(tokenizer, fim=fim.tokens)
    return Encoding(tokenizer, end, manifest.model.vocab_size, fim)


def _rows(stream: Tokens, name: str, options: DataOptions, end: int) -> Rows:
    rows = Rows(stream, options.sequence_length, end, options.mask_documents)
    if not len(rows):
        fact = f"the {name} text has {len(stream)} tokens, and a row needs {options.sequence_length + 1}."
        raise BestiaryError(Problem(fact, "data.source", "Give more text, lower data.sequence_length, or change data.held_out."))
    return rows


def _digest(options: DataOptions, tokens: Tokenized, tokenizer: Tokenizer) -> str:
    parts = (tokens.corpus, tokenizer.digest, options.model_dump(mode="json", exclude=ELSEWHERE))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
