"""DualPipe and DualPipeV (DeepSeek-V3 technical report, section 3.2.1; Sea AI Lab's cut in half).

DualPipe feeds micro-batches from both ends of the pipeline: rank r of P holds the stages r and P - 1 - r, so every layer lies on two
ranks. DualPipeV folds a line of 2 P stages in half instead and holds every layer once. Both take the same eight steps; what a rank calls
its first and its second phase is the near and the far direction.
"""

from __future__ import annotations

from .actions import Row, Schedule
from .writer import Writer


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """The table for an even number of ranks, and an even number of micro-batches, at least `2 * ranks`."""
    half, rows = ranks // 2, []
    for rank in range(ranks):
        ahead, back = rank, 2 * ranks - 1 - rank
        near = min(rank, ranks - 1 - rank)
        writer = Writer(ahead, back) if rank < half else Writer(back, ahead)
        rows.append(_eight_steps(writer, half, near, microbatches // 2, middle=near == half - 1))
    chains = (tuple(range(ranks)), tuple(range(ranks, 2 * ranks)))
    return Schedule("dualpipe", ranks, microbatches, chains, _folded(ranks), tuple(rows))


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """The table for at least `2 * ranks` micro-batches."""
    rows = [_eight_steps(Writer(rank, 2 * ranks - 1 - rank), ranks, rank, microbatches, middle=rank == ranks - 1) for rank in range(ranks)]
    return Schedule("dualpipe-v", ranks, microbatches, (tuple(range(2 * ranks)),), _folded(ranks), tuple(rows))


def _folded(ranks: int) -> tuple[int, ...]:
    return tuple(min(stage, 2 * ranks - 1 - stage) for stage in range(2 * ranks))


def _eight_steps(to: Writer, depth: int, near: int, microbatches: int, *, middle: bool) -> Row:
    """One rank's row.

    Args:
        to: with the rank's two phases.
        depth: ranks from the end where data enters to the turn.
        near: this rank's distance from that end.
        microbatches: of each phase.
        middle: whether data turns around here, so that the first pair has nothing to overlap with.
    """
    outer = depth - near - 1
    for _ in range(2 * outer):
        to.forward(0)
    for _ in range(near + 1):
        to.forward(0)
        to.forward(1)
    for _ in range(outer):
        to.backward(1, later=True)
        to.weights()
        to.forward(1)
    for step in range(microbatches - 2 * depth + near + 1):
        if middle and step == 0:
            to.forward(0)
            to.backward(1)
        else:
            to.pair(0, 1)
        to.pair(1, 0)
    for _ in range(outer):
        to.backward(1)
        to.pair(1, 0)
    _drain(to, near)
    for _ in range(outer):
        to.weights()
        to.backward(0, later=True)
    for _ in range(near + 1):
        to.weights()
    return to.row


def _drain(to: Writer, near: int) -> None:
    """The last full backward passes; halfway through, weight gradients begin to wait."""
    passes = [phase for _ in range(near + 1) for phase in (1, 0)]
    for place, phase in enumerate(passes):
        to.backward(phase, later=place > near)
