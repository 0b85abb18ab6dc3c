"""Zero-bubble schedules (Qi et al., 2023 and 2024): weight gradients wait, and fill what would be bubbles.

ZB1P is 1F1B within the same memory. ZB-V folds a line of 2 P stages over P ranks, as DualPipeV does, and keeps as many activations on every
rank as 1F1B on its first; it has no bubble between a rank's first and last pass where all three kinds of pass take equally long.
"""

from __future__ import annotations

from .actions import Row, Schedule
from .writer import Writer


def zb1p(ranks: int, microbatches: int) -> Schedule:
    """One stage a rank; rank r keeps r sets of weight gradients back, which it computes while the last gradients travel."""
    rows = []
    for rank in range(ranks):
        writer, ahead = Writer(rank), min(microbatches, ranks - 1 - rank)
        for _ in range(ahead):
            writer.forward(0)
        for done in range(microbatches - ahead):
            writer.forward(0)
            writer.backward(0, later=True)
            if done >= rank:
                writer.weights()
        for done in range(microbatches - ahead, microbatches):
            writer.backward(0, later=True)
            if done >= rank:
                writer.weights()
        for _ in range(min(rank, microbatches)):
            writer.weights()
        rows.append(writer.row)
    line = tuple(range(ranks))
    return Schedule("zb1p", ranks, microbatches, (line,), line, tuple(rows))


def zb_v(ranks: int, microbatches: int) -> Schedule:
    """Two half-size stages a rank, in a V; at least `2 * ranks - 1` micro-batches keep every rank in step."""
    stages = 2 * ranks
    rows = [_v_row(Writer(rank, stages - 1 - rank), ranks, rank, microbatches) for rank in range(ranks)]
    folded = tuple(min(stage, stages - 1 - stage) for stage in range(stages))
    return Schedule("zb-v", ranks, microbatches, (tuple(range(stages)),), folded, tuple(rows))


def _v_row(to: Writer, ranks: int, rank: int, microbatches: int) -> Row:
    for _ in range(2 * (ranks - rank) - 1):
        to.forward(0)
    for _ in range(rank):
        to.forward(1)
        to.forward(0)
    for _ in range(ranks - rank):
        to.forward(1)
        _split(to, 1)
    begun = 2 * ranks - 1 - rank
    for done in range(microbatches - ranks):
        if begun + done < microbatches:
            to.forward(0)
        _split(to, 0)
        to.forward(1)
        _split(to, 1)
    for _ in range(rank):
        to.backward(0, later=True)
        to.backward(1, later=True)
    for _ in range(ranks - rank):
        to.backward(0, later=True)
        to.weights(0)
    for phase in (1, 0):
        while to.waiting(phase):
            to.weights(phase)
    return to.row


def _split(to: Writer, phase: int) -> None:
    to.backward(phase, later=True)
    to.weights(phase)
