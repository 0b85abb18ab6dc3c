"""Text becomes token streams on disk, without ever holding more than a batch of documents.

Documents arrive in the order of their sources, and stand in the streams in the order of their places. So they are
tokenized into a spill file as they come, and copied from there in order; about 50 bytes for each document stay in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...core.errors import BestiaryError
from ..progress import tracked
from .corpus import Corpus
from .document import Document, Fingerprint, Split, cut
from .encoding import Encoding, Sided
from .tokens import Tokens

TRAIN, HELD_OUT, LENGTHS = "train.bin", "held_out.bin", "held_out_bytes.bin"
LENGTH = np.dtype(np.uint32)


@dataclass(frozen=True)
class Built:
    """What was written."""

    corpus: str
    """Digest of names and texts."""
    train_bytes: int
    """Bytes of the training text."""


def build(corpus: Corpus, encoding: Encoding, held_out: float, folder: Path) -> Built:
    """Writes both streams and the bytes behind each held-out token.

    Args:
        corpus: what is read.
        encoding: how it becomes ids.
        held_out: part of the documents that is kept for evaluation.
        folder: an empty one.

    Raises:
        BestiaryError: the corpus cannot be read, or is empty.
        OSError: the folder cannot be written.
    """
    fingerprint, split = Fingerprint(), Split.part(held_out)
    sides = _spilled(_counted(corpus, fingerprint, split), corpus.count, encoding, folder)
    if not split.seen:
        raise nothing(corpus)
    again = _mended(corpus, split, held_out)
    if again is not None:
        for side in sides:
            side.close()
        sides = _spilled(again, max(2, split.seen), encoding, folder)
    for side in sides:
        side.write(encoding.end)
    return Built(fingerprint.digest(), sum(sides[0].sizes))


def fingerprint(corpus: Corpus) -> str:
    """The digest of a corpus that is only read."""
    found = Fingerprint()
    for document in tracked(corpus.documents(), "reading text", total=corpus.count):
        found.add(document)
    return found.digest()


def nothing(corpus: Corpus) -> BestiaryError:
    """The error of a corpus without text."""
    options = corpus.options
    return BestiaryError(
        f"There is no text in {', '.join(options.source)}. Name files that are not empty, or folders with files ending in "
        f"{', '.join(options.suffixes)}; set data.suffixes for other files."
    )


class _Side:
    """One stream: first its documents as they arrive, then in order."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, lengths: str = "") -> None:
        self.paths = [folder / file for file in (name, lengths) if file]
        self.dtypes = [dtype, LENGTH][: len(self.paths)]
        self.spills = [path.with_suffix(".spill").open("w+b") for path in self.paths]
        self.places, self.counts, self.sizes = array("Q"), array("Q"), array("Q")

    def add(self, document: Document, *columns: Tokens) -> None:
        """A document: its ids, and the bytes of text behind each where those are kept."""
        for spill, dtype, values in zip(self.spills, self.dtypes, columns, strict=True):
            spill.write(values.astype(dtype, copy=False).tobytes())
        self.places.append(document.place)
        self.counts.append(len(columns[0]))
        self.sizes.append(len(document.text))

    def close(self) -> None:
        """Gives up what was spilled."""
        for spill in self.spills:
            spill.close()

    def write(self, end: int) -> None:
        """The streams, each document followed by `end`, which stands for no bytes of text."""
        counts = np.frombuffer(self.counts, dtype=np.uint64).astype(np.int64)
        starts = counts.cumsum() - counts
        order = np.argsort(np.frombuffer(self.places, dtype=np.uint64), kind="stable")
        for path, spill, dtype, closing in zip(self.paths, self.spills, self.dtypes, (end, 0), strict=False):
            with spill, path.open("wb") as out:
                for at in tracked(order, "ordering tokens", total=len(order)):
                    _copy(spill, out, int(starts[at]) * dtype.itemsize, int(counts[at]) * dtype.itemsize)
                    out.write(np.array([closing], dtype=dtype).tobytes())
            path.with_suffix(".spill").unlink()


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    target.write(source.read(size))


def _counted(corpus: Corpus, fingerprint: Fingerprint, split: Split) -> Iterator[Sided]:
    for document in corpus.documents():
        fingerprint.add(document)
        yield Sided(document, split.holds_out(document))


def _mended(corpus: Corpus, split: Split, held_out: float) -> Iterator[Sided] | None:
    """The documents once more, where the first reading left a side without any; None where it did not."""
    if split.seen == 1:
        start, end = cut(next(corpus.documents()), held_out)
        return iter([Sided(start, False), Sided(end, True)])
    better = split.mended()
    return better and (Sided(document, better.holds_out(document)) for document in corpus.documents())


def _spilled(documents: Iterator[Sided], count: int | None, encoding: Encoding, folder: Path) -> tuple[_Side, _Side]:
    """Both sides, all documents tokenized; the training side first."""
    train, held_out = _Side(folder, TRAIN, encoding.dtype), _Side(folder, HELD_OUT, encoding.dtype, LENGTHS)
    for sided, ids in tracked(encoding.encode(documents), "tokenizing", total=count):
        if sided.held_out:
            held_out.add(sided.document, ids, encoding.tokenizer.lengths(sided.document.text))
        else:
            train.add(sided.document, ids)
    return train, held_out
