"""Fill-in-the-middle (Bavarian et al. 2022), as DeepSeek-V3 has it (section 4.1): prefix, suffix, middle, on whole documents.

    <prefix> text before <suffix> text after <middle> text between

A document is cut at two random places and its middle moved to the end, before documents are packed, so that a model that
predicts one token after the other learns to fill gaps. Whether and where a document is cut follows from the seed and its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from .document import PLACES, Document
from .options import DataOptions
from .tokens import FIM, ByteTokenizer, FileTokenizer, Tokenizer

KNOWN = (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), FIM, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))  # noqa: RUF001
"""What tokenizers call prefix, suffix and middle: DeepSeek's, Qwen's, StarCoder's."""


@dataclass(frozen=True)
class FillInMiddle:
    """Which documents are rearranged, and by which tokens."""

    rate: float
    tokens: tuple[int, int, int]
    """Before prefix, suffix and middle."""
    seed: int

    def pieces(self, document: Document) -> list[int | bytes]:
        """The document as special tokens and pieces of text between them; just its text when it is not chosen."""
        text = document.text
        chance, *cuts = self._draw(document.name)
        if chance >= self.rate * PLACES:
            return [text]
        one, two = sorted(_boundary(text, cut * (len(text) + 1) // PLACES) for cut in cuts)
        prefix, suffix, middle = self.tokens
        return [prefix, text[:one], suffix, text[two:], middle, text[one:two]]

    def _draw(self, name: str) -> list[int]:
        """Three numbers in `[0, 2**64)`."""
        drawn = hashlib.blake2b(f"{self.seed}\0{name}".encode(), digest_size=24, person=b"bestiary fim").digest()
        return [int.from_bytes(drawn[start : start + 8], "big") for start in (0, 8, 16)]


def fill_in_middle(options: DataOptions, tokenizer: Tokenizer, manifest: Manifest, end: int) -> FillInMiddle | None:
    """What the recipe asks for; None without fill-in-the-middle.

    Raises:
        BestiaryError: the tokens are not there.
    """
    if not options.fim_rate:
        return None
    tokens = _named(options.fim_tokens, tokenizer) if options.fim_tokens is not None else _default(tokenizer, manifest, end)
    lowest, vocab = 256 if isinstance(tokenizer, ByteTokenizer) else 0, manifest.model.vocab_size
    if len({*tokens, end}) < 4 or not all(lowest <= token < vocab for token in tokens):
        fact = f"the tokens are {tokens}; three different ones between {lowest} and {vocab - 1} are needed, and {end} ends documents."
        raise BestiaryError(Problem(fact, "data.fim_tokens", "Name others, or leave the option out."))
    return FillInMiddle(options.fim_rate, (tokens[0], tokens[1], tokens[2]), options.seed)


def _named(names: Sequence[int | str], tokenizer: Tokenizer) -> list[int]:
    find = _finder(tokenizer)
    ids = [name if isinstance(name, int) else find(name) for name in names]
    absent = [str(name) for name, number in zip(names, ids, strict=True) if number is None]
    if absent:
        raise BestiaryError(Problem(f"the tokenizer has no {', '.join(absent)}.", "data.fim_tokens", "Give ids, or other names."))
    return [number for number in ids if number is not None]


def _default(tokenizer: Tokenizer, manifest: Manifest, end: int) -> list[int]:
    model, find = manifest.model, _finder(tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        ends = model.eos_token_id if isinstance(model.eos_token_id, list) else [model.eos_token_id]
        free = [number for number in range(256, model.vocab_size) if number not in {end, model.bos_token_id, *ends}]
        if len(free) < 3:
            fact = f"fill-in-the-middle needs three unused tokens above 255, and a vocabulary of {model.vocab_size} has {len(free)}."
            raise BestiaryError(Problem(fact, "model.vocab_size", f"Set {model.vocab_size + 3 - len(free)}, or data.fim_rate = 0."))
        return free[:3]
    for names in KNOWN:
        ids = [find(name) for name in names]
        if None not in ids:
            return [number for number in ids if number is not None]
    fact = "the tokenizer has no tokens for fill-in-the-middle that are known."
    raise BestiaryError(Problem(fact, "data.fim_tokens", "Name its tokens before prefix, suffix and middle, or set data.fim_rate = 0."))


def _finder(tokenizer: Tokenizer) -> Callable[[str], int | None]:
    return tokenizer.inner.token_to_id if isinstance(tokenizer, FileTokenizer) else lambda name: None


def _boundary(text: bytes, at: int) -> int:
    """The start of the letter that byte `at` belongs to."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at
