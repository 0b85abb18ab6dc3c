"""Documents of one file, read piece by piece: a text is one document, a JSONL line and a Parquet row are one each."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...core.errors import BestiaryError
from .document import Document

JSONL = (".jsonl", ".jsonl.gz")
PARQUET = ".parquet"
PARQUET_ROWS = 256
"""Rows decoded at a time."""


@dataclass(frozen=True)
class File:
    """A file of a source."""

    name: str
    """Of its documents."""
    path: Path
    named: bool
    """Whether the user named this very file, so that it cannot be left out silently."""

    @property
    def count(self) -> int | None:
        """Documents in it, where that is known without reading it."""
        if self.path.name.endswith(JSONL):
            return None
        return _parquet(self.path).metadata.num_rows if self.path.name.endswith(PARQUET) else 1

    @property
    def identity(self) -> tuple[str, str, int, int, int]:
        """What changes when the file does."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return self.name, str(self.path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_file(file: File, field: str, left_out: list[str]) -> Iterator[Document]:
    """The documents of a file, empty texts left out.

    Args:
        file: which one.
        field: where the text of a line or row stands.
        left_out: receives the file when it is no UTF-8 text and was not named.

    Raises:
        BestiaryError: the file cannot be read; a line or row holds no text.
    """
    try:
        if file.path.name.endswith(JSONL):
            found = _jsonl(file, field)
        elif file.path.name.endswith(PARQUET):
            found = _rows(file, field)
        else:
            found = _text(file, left_out)
        yield from (document for document in found if document.text)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(file.path, error) from error


def encoded(text: object, field: str, where: str) -> bytes:
    """A text as UTF-8.

    Raises:
        BestiaryError: it is none, or holds letters that no text has.
    """
    if not isinstance(text, str):
        raise BestiaryError(f"{where}: '{field}' should be a text, and is {json.dumps(text, default=repr)[:40]}. Mend it, or take it out.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BestiaryError(f"{where}: '{field}' holds half a surrogate pair at letter {error.start}. Mend it, or take it out.") from error


def missing(field: str, known: list[str], where: str) -> BestiaryError:
    """The error of a record without its text."""
    return BestiaryError(f"{where}: there is no '{field}' among {', '.join(known) or 'nothing'}. Set data.text_field to where the text is.")


def _unreadable(path: Path, error: Exception) -> BestiaryError:
    why = getattr(error, "strerror", None) or str(error)
    return BestiaryError(f"{path}: this file cannot be read: {why}. Mend it or make it readable, or take it out.")


def _text(file: File, left_out: list[str]) -> Iterator[Document]:
    text = file.path.read_bytes()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if file.named:
            raise BestiaryError(f"{file.path}: this file is not UTF-8 text (byte {error.start}). Convert it, or take it out.") from error
        left_out.append(str(file.path))
        return
    yield Document(file.name, text)


def _jsonl(file: File, field: str) -> Iterator[Document]:
    with _opened(file.path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Document(f"{file.name}#{number}", _line(line, field, f"{file.path}, line {number}"))


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _line(line: bytes, field: str, where: str) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BestiaryError(f"{where}: this is not valid JSON: {error}. Mend the line, or take it out.") from error
    if not isinstance(record, dict):
        raise BestiaryError(f"{where}: expected a JSON object, found {type(record).__name__}. Mend the line, or take it out.")
    if field not in record:
        raise missing(field, list(record), where)
    return encoded(record[field], field, where)


def _rows(file: File, field: str) -> Iterator[Document]:
    inner = _parquet(file.path)
    if field not in inner.schema_arrow.names:
        raise missing(field, inner.schema_arrow.names, str(file.path))
    with _readable(file.path):
        batches = inner.iter_batches(batch_size=PARQUET_ROWS, columns=[field])
        for row, text in enumerate(text for batch in batches for text in batch.column(0).to_pylist()):
            yield Document(f"{file.name}#{row}", encoded(text, field, f"{file.path}, row {row}"))


def _parquet(path: Path) -> Any:
    with _readable(path):
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path, pre_buffer=False)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says whose fault an error of pyarrow is."""
    try:
        from pyarrow import ArrowException
    except ImportError as error:
        raise BestiaryError(f"{path}: Parquet is read by pyarrow, which is not installed. Run: pip install bestiary[data]") from error
    try:
        yield
    except ArrowException as error:
        raise BestiaryError(f"{path}: this is no Parquet file that can be read: {error}. Mend it, or take it out.") from error
