"""What each rank of a layout holds of every parameter, and which reads of a plan fill that.

    rank = (stage * dp + d) * tp + t

Layers go to pipeline stages in order, the embedding to the first and the final norm, the head and objectives to the last; experts
to `ep` of a stage's ranks; column- and row-parallel matrices to its `tp` ranks. With `zero=3` what is left of a parameter is cut
along its first dimension among the ranks that would hold the same, as `torch.chunk` cuts: the last parts may be smaller or empty.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import BestiaryError, Problem
from ..core.layout import PLACE, Layout, cut_units, nearest
from ..core.manifest import Manifest
from ..core.table import entries
from ..core.weights import Entry, Weight
from .header import Stored
from .plan import Read
from .regions import Index, Region, overlap


@dataclass(frozen=True)
class Place:
    """Where a rank stands in its layout."""

    stage: int
    data: int
    tensor: int
    expert: int
    share: int
    """Which of the ranks that hold the same experts it is."""


def place(layout: Layout, rank: int) -> Place:
    stage, inner = divmod(rank, layout.dp * layout.tp)
    data, tensor = divmod(inner, layout.tp)
    return Place(stage, data, tensor, inner % layout.ep, inner // layout.ep)


def check_ranks(manifest: Manifest, layout: Layout) -> None:
    """Whether every rank of a layout gets whole heads, rows and layers.

    Raises:
        BestiaryError: with everything that does not divide.
    """
    model, problems = manifest.model, []
    if layout.pp > model.num_hidden_layers:
        problems.append(Problem(f"pp={layout.pp}, and the model has {model.num_hidden_layers} layers.", PLACE, "Take fewer stages."))
    if layout.dp * layout.tp % layout.ep:
        problems.append(Problem(f"ep={layout.ep} does not divide the dp * tp = {layout.dp * layout.tp} ranks of a stage.", PLACE))
    bad = {name: units for name, units in cut_units(entries(manifest)).items() if units % layout.tp}
    if bad:
        name, units = next(iter(bad.items()))
        more = f", nor {len(bad) - 1} others" if len(bad) > 1 else ""
        remedy = f"The nearest: tp={nearest(layout.tp, math.gcd(*cut_units(entries(manifest)).values()))}."
        problems.append(Problem(f"tp={layout.tp} does not divide {name} into whole heads or rows: there are {units}{more}.", PLACE, remedy))
    if problems:
        raise BestiaryError(*problems)


def held_by(manifest: Manifest, layout: Layout, rank: int) -> dict[str, Region]:
    """The regions of the parameters that a rank holds, by name; parameters of other stages are absent, empty parts too."""
    return Shares(manifest, layout).of(rank)


class Shares:
    """What the ranks of a layout hold; what several have in common is worked out once."""

    def __init__(self, manifest: Manifest, layout: Layout) -> None:
        self._layout = layout
        self._rows: list[list[Entry]] = [[] for _ in range(layout.pp)]
        for entry in _own(manifest):
            for stage in _stages(manifest, entry, layout.pp):
                self._rows[stage].append(entry)
        self._known: dict[tuple[Any, ...], Region | None] = {}

    def of(self, rank: int) -> dict[str, Region]:
        """The regions of one rank, by parameter; what it holds nothing of is absent."""
        where = place(self._layout, rank)
        inner = (where.data, where.tensor, where.expert, where.share)
        found = {}
        for entry in self._rows[where.stage]:
            weight = entry.weight
            key = (weight.shape, weight.shard, weight.role, inner)
            if key not in self._known:
                region = _region(weight, self._layout, where)
                self._known[key] = region if all(cut.stop > cut.start for cut in region) else None
            if (region := self._known[key]) is not None:
                found[entry.name] = region
        return found


class Cutter:
    """The reads of a whole model, prepared so that those of one rank are found without looking at all of them."""

    def __init__(self, reads: Iterable[Read], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._reads: dict[str, list[Read]] = {}
        for read in reads:
            self._reads.setdefault(read.target, []).append(read)
        for found in self._reads.values():
            found.sort(key=_first)
        self._firsts = {name: [_first(read) for read in found] for name, found in self._reads.items()}

    def reads(self, regions: Mapping[str, Region]) -> list[Read]:
        """The reads that fill these regions, each of just what is needed."""
        found = []
        for name, region in regions.items():
            for read in self._near(name, region):
                if cut := overlap(self._shapes[name], read.region, region):
                    found.append(_cut(read, *cut))
        return found

    def _near(self, name: str, region: Region) -> Sequence[Read]:
        reads = self._reads.get(name, [])
        if not region or not reads or not reads[0].region or not isinstance(reads[0].region[0], int):
            return reads
        firsts = self._firsts[name]
        return reads[bisect_left(firsts, region[0].start) : bisect_left(firsts, region[0].stop)]


def _first(read: Read) -> int:
    index = read.region[0] if read.region else 0
    return index if isinstance(index, int) else index.start or 0


def _cut(read: Read, part: Region, region: Index) -> Read:
    """A read of a part of its tensor. Rows are a piece of the file; columns are picked out of each row."""
    source, scale, columns, skip, row = read.source, read.scale, None, 0, 0
    if source.shape:
        first, last = part[0], part[-1]
        if len(part) > 1 and (last.start, last.stop) != (0, source.shape[-1]):
            columns = (last.start, last.stop)
        if (first.start, first.stop) != (0, source.shape[0]):
            height = read.block[0] if len(part) == 2 else 1
            row, skip = first.start, first.start % height
            if scale is not None:
                scale = narrow(scale, first.start // height, -(-first.stop // height))
            source = narrow(source, first.start, first.stop)
    return Read(source, read.target, region, read.op, scale, read.block, skip, columns, row)


def narrow(stored: Stored, start: int, stop: int) -> Stored:
    """Rows `start` to `stop` of a stored tensor, as if they were one."""
    row = stored.nbytes // stored.shape[0]
    shape = (stop - start, *stored.shape[1:])
    return Stored(stored.file, stored.name, stored.dtype, shape, stored.offset + start * row, (stop - start) * row)


def _own(manifest: Manifest) -> list[Entry]:
    return [entry for entry in entries(manifest) if not entry.weight.duplicate_of]


def _stages(manifest: Manifest, entry: Entry, pp: int) -> set[int]:
    """The pipeline stages that hold a parameter."""
    layers = manifest.model.num_hidden_layers
    if entry.part == "embedding":
        again = manifest.model.tie_word_embeddings or any(
            weight.duplicate_of for part in manifest.objectives.values() for weight in part.weights(manifest.site.at(layers))
        )
        return {0, pp - 1} if again else {0}
    if entry.layer is None or entry.layer >= layers:
        return {pp - 1}
    return {min(stage for stage in range(pp) if entry.layer < (stage + 1) * layers // pp)}


def _region(weight: Weight, layout: Layout, where: Place) -> Region:
    region = [slice(0, size) for size in weight.shape]
    shares, share = layout.dp, where.data
    if weight.shard == "expert":
        region[0] = _chunk(region[0], layout.ep, where.expert)
        shares, share = layout.dp * layout.tp // layout.ep, where.share
    elif weight.shard in ("column", "row"):
        region[weight.cut_dim] = _chunk(region[weight.cut_dim], layout.tp, where.tensor)
    if layout.zero == 3 and region:
        region[0] = _chunk(region[0], shares, share)
    return tuple(region)


def _chunk(whole: slice, count: int, index: int) -> slice:
    """The part of a range that `torch.chunk` gives; empty where it gives none."""
    size = math.ceil((whole.stop - whole.start) / count)
    start = min(whole.start + index * size, whole.stop)
    return slice(start, min(start + size, whole.stop))
