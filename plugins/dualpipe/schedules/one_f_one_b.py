"""1F1B and interleaved 1F1B (Narayanan et al., 2021): after a warm-up every forward pass is followed by a backward pass."""

from __future__ import annotations

from .actions import Schedule
from .writer import Writer


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """One stage a rank; rank r sends `ranks - 1 - r` micro-batches ahead."""
    rows = []
    for rank in range(ranks):
        writer, ahead = Writer(rank), min(microbatches, ranks - 1 - rank)
        for _ in range(ahead):
            writer.forward(0)
        for _ in range(microbatches - ahead):
            writer.forward(0)
            writer.backward(0)
        for _ in range(ahead):
            writer.backward(0)
        rows.append(writer.row)
    line = tuple(range(ranks))
    return Schedule("1f1b", ranks, microbatches, (line,), line, tuple(rows))


def interleaved(ranks: int, microbatches: int, chunks: int, *, overlap: bool = False) -> Schedule:
    """`chunks` stages a rank: stage s lies on rank `s % ranks`. Micro-batches, a multiple of `ranks`, go in rounds of `ranks` through each
    chunk.

    With `overlap`, one more micro-batch is sent ahead, so that a forward and a backward pass of the steady state need nothing of
    each other and make a pair (Megatron Core's way of hiding exchanges between experts).
    """
    rows, passes = [], microbatches * chunks
    for rank in range(ranks):
        writer = Writer(*range(rank, ranks * chunks, ranks))
        ahead = min(passes, (chunks - 1) * ranks + 2 * (ranks - 1 - rank) + overlap)
        order = [place // ranks % chunks for place in range(passes)]
        for chunk in order[:ahead]:
            writer.forward(chunk)
        for forward, backward in zip(order[ahead:], order, strict=False):
            if overlap:
                writer.pair(forward, chunks - 1 - backward)
            else:
                writer.forward(forward)
                writer.backward(chunks - 1 - backward)
        for backward in order[passes - ahead :]:
            writer.backward(chunks - 1 - backward)
        rows.append(writer.row)
    stages, name = ranks * chunks, "interleaved-overlap" if overlap else "interleaved"
    placed = tuple(stage % ranks for stage in range(stages))
    return Schedule(name, ranks, microbatches, (tuple(range(stages)),), placed, tuple(rows))
