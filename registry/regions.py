"""Rectangular parts of parameters."""

from __future__ import annotations

Region = tuple[slice, ...]
"""A slice with start and stop for every dimension of a parameter."""
Index = tuple[int | slice, ...]
"""As `Piece.region`: trailing dimensions that are whole may be missing."""


def overlap(shape: tuple[int, ...], piece: Index, region: Region) -> tuple[Region, Index] | None:
    """What a piece of a parameter and a rank's region of it have in common.

    Args:
        shape: of the parameter.
        piece: the region of it that a stored tensor fills; its integers are dimensions that the stored tensor lacks.
        region: the rank's.

    Returns:
        The part of the stored tensor, and its place in what the rank holds; None where they do not meet.
    """
    source, target = [], []
    for axis, size in enumerate(shape):
        index, held = piece[axis] if axis < len(piece) else slice(0, size), region[axis]
        if isinstance(index, int):
            if not held.start <= index < held.stop:
                return None
            target.append(index - held.start)
            continue
        begin, end, _ = index.indices(size)
        start, stop = max(begin, held.start), min(end, held.stop)
        if start >= stop:
            return None
        source.append(slice(start - begin, stop - begin))
        target.append(slice(start - held.start, stop - held.start))
    return tuple(source), tuple(target)
