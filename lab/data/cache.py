"""Tokens on disk, so that text is read and tokenized once, and a run needs no more memory for a larger corpus.

    <cache>/<settings>/<corpus>/     header.json train.bin held_out.bin held_out_bytes.bin
    <cache>/<settings>/<identity>.json      which corpus these files or this commit held when they were last read

`settings` is the digest of everything that decides ids (tokenizer, end token, fill-in-the-middle, split, type), `corpus`
that of all names and texts. `identity` is the digest of names, sizes and times of files: where it is known, the text is
not read at all. Where it is not, local text is read once more and its digest looked up, before anything is tokenized.
Everything is written under a temporary name and renamed, and one process builds while others wait.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ...core.errors import BestiaryError, Problem
from ..progress import console
from .build import HELD_OUT, LENGTH, LENGTHS, TRAIN, Built, build, fingerprint
from .corpus import Corpus
from .encoding import Encoding
from .options import DataOptions
from .tokens import Tokens

VERSION = 1
"""Of the layout and of how text becomes tokens; old entries are not read."""
HEADER, BUILDING = "header.json", "building"


@dataclass(frozen=True)
class Tokenized:
    """The tokens of a corpus, mapped into memory."""

    train: Tokens
    """Ids of all training documents, each followed by the end token."""
    held_out: Tokens
    held_out_bytes: Tokens
    """Bytes of text behind each held-out token; 0 for end tokens."""
    train_bytes: int
    """Bytes of the training text."""
    corpus: str
    """Digest of all names and texts."""


def cache_folder(options: DataOptions) -> Path:
    """Where tokens are kept: the recipe's folder, or `tokens` below `$BESTIARY_CACHE` or `~/.cache/bestiary`."""
    home = os.environ.get("BESTIARY_CACHE") or "~/.cache/bestiary"
    return Path(options.cache or Path(home) / "tokens").expanduser()


def tokenized(corpus: Corpus, encoding: Encoding, *, held_out: float, folder: Path) -> Tokenized:
    """The tokens of a corpus, from the cache or into it. `corpus.left_out` is filled either way.

    Raises:
        BestiaryError: the corpus cannot be read, or the cache cannot be written.
    """
    settings = {"version": VERSION, "held_out": held_out, **encoding.settings}
    shelf, identity = _Shelf(folder / _digest(settings)[:32], settings), corpus.identity
    try:
        found = shelf.remembered(identity, corpus)
        if found is not None:
            return found
        with shelf.alone(identity):
            return shelf.remembered(identity, corpus) or shelf.read(identity, corpus) or shelf.built(identity, corpus, encoding, held_out)
    except OSError as error:
        fact = f"tokens cannot be kept in {folder}: {error.strerror or error}."
        raise BestiaryError(Problem(fact, "data.cache", "Free space or name another folder, there or in BESTIARY_CACHE.")) from error


class _Shelf:
    """All corpora that became tokens in the same way."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))

    def remembered(self, identity: str, corpus: Corpus) -> Tokenized | None:
        """The tokens of text that is known to be unchanged."""
        record = _json(self.folder / f"{identity[:32]}.json")
        found = self.entry(record["corpus"]) if record else None
        if record and found is not None:
            corpus.left_out[:] = record["left_out"]
        return found

    def read(self, identity: str, corpus: Corpus) -> Tokenized | None:
        """The tokens of text that other files held before; not looked for where reading is as slow as building."""
        if not corpus.local or not any(self.folder.glob(f"*/{HEADER}")):
            return None
        found = self.entry(fingerprint(corpus))
        if found is not None:
            self._remember(identity, corpus, found.corpus)
        return found

    def built(self, identity: str, corpus: Corpus, encoding: Encoding, held_out: float) -> Tokenized:
        """New tokens."""
        temporary = self.folder / f"{identity[:32]}.{BUILDING}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            made = build(corpus, encoding, held_out, temporary)
            _seal(temporary, self.settings, made)
            found = self._placed(temporary, made.corpus)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remember(identity, corpus, made.corpus)
        return found

    def entry(self, corpus: str) -> Tokenized | None:
        """The tokens of a corpus; None when they are not there, or damaged."""
        folder = self.folder / corpus[:32]
        header = _json(folder / HEADER)
        if header is None or header["settings"] != self.settings or header["corpus"] != corpus:
            return None
        if header["files"] != _sizes(folder):
            return None
        dtype = np.dtype(self.settings["dtype"])
        train, held_out = (_mapped(folder / name, dtype) for name in (TRAIN, HELD_OUT))
        return Tokenized(train, held_out, _mapped(folder / LENGTHS, LENGTH), header["train_bytes"], corpus)

    @contextmanager
    def alone(self, identity: str) -> Iterator[None]:
        """Holds other processes off that would build the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{identity[:32]}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            console.print("waiting for another process that tokenizes the same text", highlight=False)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _placed(self, temporary: Path, corpus: str) -> Tokenized:
        """Gives finished tokens their name. Another process may have done so for equal text from other files."""
        final = self.folder / corpus[:32]
        found = self.entry(corpus)
        if found is None and final.exists():
            final.rename(temporary / "damaged")
        if found is None:
            _renamed(temporary, final)
            shutil.rmtree(final / "damaged", ignore_errors=True)
            found = self.entry(corpus)
        if found is None:
            raise BestiaryError(f"{final}: tokens that were just written cannot be read back. Check the disk, or name another data.cache.")
        return found

    def _remember(self, identity: str, corpus: Corpus, digest: str) -> None:
        """Notes what these files hold, unless they may have changed meanwhile, or may yet without their times showing it."""
        if corpus.settled and corpus.identity == identity:
            _write(self.folder / f"{identity[:32]}.json", {"corpus": digest, "left_out": corpus.left_out})


def _seal(folder: Path, settings: dict[str, Any], made: Built) -> None:
    """Writes the header, once everything else is safely on disk."""
    for name in (TRAIN, HELD_OUT, LENGTHS):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    _write(folder / HEADER, {"settings": settings, "files": _sizes(folder), **asdict(made)})


def _renamed(temporary: Path, final: Path) -> None:
    """Renames a folder, unless there is one by now that is not empty."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sizes(folder: Path) -> dict[str, int]:
    names = (TRAIN, HELD_OUT, LENGTHS)
    return {name: (folder / name).stat().st_size if (folder / name).exists() else -1 for name in names}


def _mapped(path: Path, dtype: np.dtype) -> Tokens:
    """The file as an array; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if path.stat().st_size else np.empty(0, dtype=dtype)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: dict[str, Any]) -> None:
    """Writes a record with its own digest, all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"data": data, "digest": _digest(data)}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _json(path: Path) -> dict[str, Any] | None:
    """A record that `_write` wrote; None when it is absent or damaged."""
    try:
        record = json.loads(path.read_bytes())
        return record["data"] if record["digest"] == _digest(record["data"]) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
