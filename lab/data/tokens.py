"""Tokenizers: bytes, or any `tokenizer.json`. Each also says how many bytes of text a token stands for.

A model folder always gets a `tokenizer.json`; for bytes that is a byte-level vocabulary without merges, so that other
software reads it too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ...registry.hub import fetch
from .options import BYTES, hub_id

END = "<|endoftext|>"
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
Tokens = NDArray[np.integer]


class Tokenizer(Protocol):
    """Bytes to ids."""

    @property
    def size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def digest(self) -> str:
        """Same digest, same ids."""
        ...

    def encode(self, texts: Sequence[bytes]) -> list[Tokens]:
        """The ids of each UTF-8 text."""
        ...

    def lengths(self, text: bytes) -> Tokens:
        """Bytes of text that each token of `text` stands for; they add up to `len(text)`."""
        ...

    def save(self, folder: Path, end: int) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` into a model's folder."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """A token is a byte."""

    fim: tuple[int, ...] = ()
    """Ids of the tokens of fill-in-the-middle, which text never gives."""

    @property
    def size(self) -> int:
        return 256

    @property
    def digest(self) -> str:
        return BYTES

    def encode(self, texts: Sequence[bytes]) -> list[Tokens]:
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def lengths(self, text: bytes) -> Tokens:
        return np.ones(len(text), dtype=np.int64)

    def save(self, folder: Path, end: int) -> None:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        special = {end: END, **dict(zip(self.fim, FIM, strict=False))}
        letters = _byte_letters() + [special.get(i, f"<|unused-{i}|>") for i in range(256, 1 + max(special))]
        made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([AddedToken(special[number], special=True) for number in sorted(special)])
        made.save(str(folder / "tokenizer.json"))
        _save_config(folder, END)


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library. Text stays text: what looks like a special token is none."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self.path = path / "tokenizer.json" if path.is_dir() else path
        try:
            self.inner = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises bare Exception
            fact = f"{self.path} is no tokenizer that can be read: {error}."
            raise BestiaryError(Problem(fact, "data.tokenizer", f"Give a tokenizer.json, or '{BYTES}'.")) from error
        self.inner.encode_special_tokens = True
        self.inner.no_truncation()
        self.inner.no_padding()
        self.size = 1 + max(self.inner.get_vocab(with_added_tokens=True).values())
        self.digest = hashlib.sha256(self.path.read_bytes()).hexdigest()

    def encode(self, texts: Sequence[bytes]) -> list[Tokens]:
        encodings = self.inner.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    def lengths(self, text: bytes) -> Tokens:
        letters = text.decode()
        offsets = self.inner.encode(letters, add_special_tokens=False).offsets
        if not offsets:
            return np.empty(0, dtype=np.int64)
        widths = np.array([len(letter.encode()) for letter in letters], dtype=np.int64)
        until = np.concatenate(([0], widths.cumsum()))
        ends = np.maximum.accumulate(until[[stop for _, stop in offsets]])
        ends[-1] = len(text)
        return np.diff(ends, prepend=0)

    def save(self, folder: Path, end: int) -> None:
        shutil.copyfile(self.path, folder / "tokenizer.json")
        _save_config(folder, self.inner.id_to_token(end))


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or the tokenizer in a file, in a folder, or of a Hub repository.

    Raises:
        BestiaryError: the file is missing or no tokenizer.
    """
    if name == BYTES:
        return ByteTokenizer()
    return FileTokenizer(_fetched(name) if hub_id(name) and not Path(name).exists() else Path(name))


def _fetched(reference: str) -> Path:
    remedy = f"Give a tokenizer.json, its folder, a Hub id, or '{BYTES}'."
    try:
        path = fetch(reference, "tokenizer.json")
    except BestiaryError as error:
        raise BestiaryError(Problem(f"{reference} cannot be fetched: {error}", "data.tokenizer", remedy)) from error
    if path is None:
        raise BestiaryError(Problem(f"the repository {reference} has no tokenizer.json.", "data.tokenizer", remedy))
    return path


def end_token(tokenizer: Tokenizer, manifest: Manifest) -> int:
    """The token that ends a document.

    Raises:
        BestiaryError: tokenizer and model do not fit together.
    """
    vocab, end = manifest.model.vocab_size, manifest.model.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if tokenizer.size > vocab:
        raise BestiaryError(
            Problem(
                f"the tokenizer has {tokenizer.size} tokens and the model {vocab}.",
                "data.tokenizer",
                f"Set model.vocab_size = {tokenizer.size}, or more.",
            )
        )
    lowest = 256 if isinstance(tokenizer, ByteTokenizer) else 0
    if end is None or not lowest <= end < vocab:
        found = "none" if end is None else str(end)
        raise BestiaryError(
            Problem(
                f"documents are joined by the model's end token, between {lowest} and {vocab - 1}; it has {found}.",
                "model.eos_token_id",
                f"Set model.eos_token_id{' = 256, and model.vocab_size = 257 or more' if lowest else ''}.",
            )
        )
    return end


def _byte_letters() -> list[str]:
    """The letter by which byte-level vocabularies show each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def _save_config(folder: Path, end: str | None) -> None:
    data = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
