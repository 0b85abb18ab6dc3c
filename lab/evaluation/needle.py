"""A needle in a haystack: does a model use what it read once, long ago?

    ... held-out text ...
    NEEDLE_7F3A = "k3x9q2ab"          hidden at depth d
    ... more text, n tokens in all ...
    NEEDLE_7F3A = "                   how many tokens of the value does it get right?

The score is the share of the value's tokens that are the model's most likely ones, each predicted from the true ones before it; a value is
found when all are, which is when greedy decoding would write it. A model that guesses letters and digits gets one in 36. The
control asks the same question of the same text without the needle, so that `gain`, in nats per token of the value, is what the
needle alone is worth.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.backbone import CausalLM
from ...core.errors import BestiaryError, Problem
from ..data.tokens import Tokenizer
from ..progress import tracked
from .options import NeedleOptions
from .positions import Documents
from .scores import token_scores

ALPHABET = string.ascii_lowercase + string.digits
BATCH_TOKENS = 8192
"""Of prompts that are read at once."""
Ids = NDArray[np.int64]
Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Retrieval:
    """The score of every length (rows) and depth (columns), mean over needles."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    count: int
    share: Grid
    """Of the value's tokens that were right."""
    found: Grid
    """Of values that were right in every token."""
    gain: Grid
    """Nats per token of the value by which the needle raises its log-likelihood."""
    control: tuple[float, ...]
    """By length, the share of tokens that were right without a needle."""

    @classmethod
    def read(cls, data: dict[str, Any]) -> Retrieval:
        """From its JSON."""
        share, found, gain = (tuple(tuple(row) for row in data[name]) for name in ("share", "found", "gain"))
        return cls(tuple(data["lengths"]), tuple(data["depths"]), data["count"], share, found, gain, tuple(data["control"]))


@dataclass(frozen=True)
class Needle:
    """One name with its value, and the text that it is hidden in."""

    line: Ids
    """The needle: a whole line."""
    question: Ids
    """The last line, up to where the value begins."""
    value: Ids
    text: Ids

    def prompt(self, length: int, depth: float | None, line_end: int) -> Ids:
        """`[length]` ids, the value last; without the needle when `depth` is None.

        The needle goes to the line break of the text that is nearest to `depth`, or to that very place where lines never end.
        """
        line = self.line if depth is not None else self.line[:0]
        text = self.text[: length - len(line) - len(self.question) - len(self.value)]
        at = _break(text, (depth or 0.0) * len(text), line_end)
        return np.concatenate((text[:at], line, text[at:], self.question, self.value))


def retrieval(model: CausalLM, tokenizer: Tokenizer, documents: Documents, options: NeedleOptions) -> Retrieval:
    """Hides needles at every depth of texts of every length, and asks for them.

    Raises:
        BestiaryError: a length leaves no room for text, or no document is that long.
    """
    needles = make_needles(tokenizer, documents, options)
    line_end = int(tokenizer.encode([b"\n"])[0][-1])
    cells = [(length, depth) for length in options.lengths for depth in (None, *options.depths)]
    scores: dict[tuple[int, float | None], tuple[float, float, float]] = {}
    for length, depth in tracked(cells, "needles", total=len(cells)):
        prompts = [needle.prompt(length, depth, line_end) for needle in needles]
        scores[length, depth] = _scores(model, prompts, [len(needle.value) for needle in needles])
    grids = [tuple(tuple(scores[length, depth][which] for depth in options.depths) for length in options.lengths) for which in (0, 1, 2)]
    without = [scores[length, None] for length in options.lengths]
    gain = tuple(tuple(likely - base[2] for likely in row) for row, base in zip(grids[2], without, strict=True))
    return Retrieval(options.lengths, options.depths, options.count, grids[0], grids[1], gain, tuple(base[0] for base in without))


def make_needles(tokenizer: Tokenizer, documents: Documents, options: NeedleOptions) -> list[Needle]:
    """`options.count` needles, the same for every model that reads by the same tokenizer.

    Raises:
        BestiaryError: a length leaves no room for text, or no document is that long.
    """
    draw = random.Random(options.seed)
    made: list[Needle] = []
    for _ in range(options.count):
        name, value = f"NEEDLE_{draw.randrange(16**4):04X}", "".join(draw.choices(ALPHABET, k=options.value_length))
        start, said, end, again = tokenizer.encode([f'{name} = "'.encode(), value.encode(), b'"\n', f'\n{name} = "'.encode()])
        text = documents.ids[draw.randrange(len(documents.ids))]
        line = np.concatenate((start, said, end)).astype(np.int64)
        made.append(Needle(line, again.astype(np.int64), said.astype(np.int64), text))
    _check_lengths(made, options)
    return made


def _check_lengths(needles: list[Needle], options: NeedleOptions) -> None:
    around = max(len(n.line) + len(n.question) + len(n.value) for n in needles)
    shortest, longest = options.lengths[0], options.lengths[-1]
    if shortest < 2 * around:
        fact = f"a text of {shortest} tokens is too short for a needle and its question, which take {around}."
        raise BestiaryError(Problem(fact, "needle.lengths", f"Use at least {2 * around}."))
    if longest > len(needles[0].text):
        fact = f"a text of {longest} tokens is longer than the documents, of which {len(needles[0].text) - 1} tokens are read."
        raise BestiaryError(Problem(fact, "needle.lengths", "Raise positions.length, or use shorter texts."))


def _break(text: Ids, wanted: float, line_end: int) -> int:
    """The place after a line end that is nearest to `wanted`; the start and the end of the text count as such."""
    places = np.concatenate(([0], np.flatnonzero(text == line_end) + 1, [len(text)]))
    nearest = int(places[np.abs(places - wanted).argmin()])
    return nearest if abs(nearest - wanted) <= max(64, 0.05 * len(text)) else round(wanted)


def _scores(model: CausalLM, prompts: list[Ids], widths: list[int]) -> tuple[float, float, float]:
    """Share of right tokens, share of values found, and log-likelihood per token: means over prompts of one length."""
    share, found, likely = [], [], []
    for ids, part in _batches(prompts, widths):
        scores = token_scores(model, ids)
        for row, width in enumerate(part):
            right = scores.right[row, -width:]
            share.append(float(right.float().mean()))
            found.append(float(right.all()))
            likely.append(-float(scores.nats[row, -width:].mean()))
    return tuple(sum(column) / len(column) for column in (share, found, likely))  # type: ignore[return-value]


def _batches(prompts: list[Ids], widths: list[int]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    rows = max(1, BATCH_TOKENS // len(prompts[0]))
    for start in range(0, len(prompts), rows):
        yield torch.from_numpy(np.stack(prompts[start : start + rows])), widths[start : start + rows]
