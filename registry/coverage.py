"""Whether reads fill what they are to fill: every element exactly once, proved with intervals, not with bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from .plan import Read
from .regions import Region

Box = tuple[tuple[int, int], ...]


def uncovered(reads: Iterable[Read], regions: Mapping[str, Region]) -> list[str]:
    """What is wrong, a sentence for each parameter; empty when every element is written exactly once.

    Args:
        reads: with regions in local coordinates.
        regions: what is held of each parameter.
    """
    boxes: dict[str, list[Box]] = {name: [] for name in regions}
    wrong = []
    for read in reads:
        if read.target not in regions:
            wrong.append(f"{read.target}: read, and not held")
            continue
        shape = tuple(cut.stop - cut.start for cut in regions[read.target])
        boxes[read.target].append(_box(read, shape))
    for name, region in regions.items():
        shape = tuple([cut.stop - cut.start for cut in region])
        if boxes[name] == [tuple([(0, size) for size in shape])]:
            continue
        filled = sum(math.prod(stop - start for start, stop in box) for box in boxes[name])
        if filled != math.prod(shape):
            wrong.append(f"{name}: {filled:,} elements are written, and it has {math.prod(shape):,}")
        elif not _disjoint(boxes[name]):
            wrong.append(f"{name}: some elements are written twice, and others never")
    return wrong


def _box(read: Read, shape: tuple[int, ...]) -> Box:
    box = []
    for axis, size in enumerate(shape):
        index = read.region[axis] if axis < len(read.region) else slice(0, size)
        start, stop = (index, index + 1) if isinstance(index, int) else index.indices(size)[:2]
        if not 0 <= start < stop <= size:
            raise IndexError(f"{read.target}: {index} is outside of {shape}")
        box.append((start, stop))
    return tuple(box)


def _disjoint(boxes: Sequence[Box], axis: int = 0) -> bool:
    """Whether no two boxes meet: sorted along an axis, those that overlap there are compared along the next."""
    if len(boxes) < 2:
        return True
    if axis == len(boxes[0]):
        return False
    ordered = sorted(boxes, key=lambda box: box[axis])
    group, reach = [ordered[0]], ordered[0][axis][1]
    for box in ordered[1:]:
        if box[axis][0] >= reach:
            if not _disjoint(group, axis + 1):
                return False
            group = []
        group.append(box)
        reach = max(reach, box[axis][1])
    if all(box[axis] == group[0][axis] for box in group):
        return _disjoint(group, axis + 1)
    return not any(_meet(a, b) for i, a in enumerate(group) for b in group[:i])


def _meet(a: Box, b: Box) -> bool:
    return all(one[0] < other[1] and other[0] < one[1] for one, other in zip(a, b, strict=True))
