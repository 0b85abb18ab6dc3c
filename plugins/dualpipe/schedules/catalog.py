"""Every schedule by name, and what numbers each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....core.errors import BestiaryError, suggest
from .actions import Schedule
from .dualpipe import dualpipe, dualpipe_v
from .one_f_one_b import interleaved, one_f_one_b
from .zero_bubble import zb1p, zb_v


@dataclass(frozen=True)
class Kind:
    """A family of tables."""

    make: Callable[[int, int, int], Schedule]
    """From ranks, micro-batches and chunks."""
    stages: Callable[[int, int], int]
    """Stages in line, from ranks and chunks."""
    even_ranks: bool = False
    multiple: Callable[[int], int] = lambda ranks: 1
    """What micro-batches are a multiple of."""
    least: Callable[[int], int] = lambda ranks: 1
    """The fewest micro-batches."""
    copies: int = 1
    """Ranks that hold the same layer."""


SCHEDULES = {
    "1f1b": Kind(lambda p, m, v: one_f_one_b(p, m), lambda p, v: p),
    "interleaved": Kind(interleaved, lambda p, v: p * v, multiple=lambda p: p),
    "interleaved-overlap": Kind(lambda p, m, v: interleaved(p, m, v, overlap=True), lambda p, v: p * v, multiple=lambda p: p),
    "zb1p": Kind(lambda p, m, v: zb1p(p, m), lambda p, v: p),
    "zb-v": Kind(lambda p, m, v: zb_v(p, m), lambda p, v: 2 * p, least=lambda p: 2 * p - 1),
    "dualpipe-v": Kind(lambda p, m, v: dualpipe_v(p, m), lambda p, v: 2 * p, least=lambda p: 2 * p),
    "dualpipe": Kind(
        lambda p, m, v: dualpipe(p, m), lambda p, v: p, even_ranks=True, multiple=lambda p: 2, least=lambda p: 2 * p, copies=2
    ),
}


def make(name: str, *, ranks: int, microbatches: int, chunks: int = 2) -> Schedule:
    """The table of a schedule.

    Args:
        name: one of `SCHEDULES`.
        ranks: of the pipeline.
        microbatches: of a step.
        chunks: stages on a rank, of the interleaved schedules.

    Raises:
        BestiaryError: there is no such schedule, or it does not take these numbers; names the nearest that it takes.
    """
    if name not in SCHEDULES:
        raise BestiaryError(f"There is no schedule '{name}'. {suggest(name, SCHEDULES)}")
    if min(ranks, microbatches, chunks) < 1:
        raise BestiaryError(f"{ranks} ranks, {microbatches} micro-batches, {chunks} chunks: expected 1 or more of each.")
    kind = SCHEDULES[name]
    if kind.even_ranks and ranks % 2:
        valid = f"{ranks - 1} or {ranks + 1}" if ranks > 1 else "2"
        raise BestiaryError(f"{name} needs an even number of pipeline ranks, not {ranks}. The nearest: {valid}.")
    least, multiple = kind.least(ranks), kind.multiple(ranks)
    if microbatches < least:
        raise BestiaryError(f"{name} on {ranks} ranks needs {least} micro-batches at least, not {microbatches}. The nearest: {least}.")
    if microbatches % multiple:
        below = max(least, microbatches // multiple * multiple, multiple)
        above = -(-microbatches // multiple) * multiple
        valid = f"{below} or {above}" if below != above else f"{above}"
        raise BestiaryError(
            f"{name} on {ranks} ranks needs a multiple of {multiple} micro-batches, not {microbatches}. The nearest: {valid}."
        )
    return kind.make(ranks, microbatches, chunks)
