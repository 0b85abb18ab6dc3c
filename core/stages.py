"""Layers cut into pipeline stages, as even in counted FLOPs as whole layers allow, then as even in parameters.

The embedding lies on the first stage; the final norm, the head and what objectives add on the last, which may hold no layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from operator import add

from .accounting import layer_costs, objective_cost
from .layout import Layout
from .manifest import Manifest
from .table import entries
from .weights import Entry

WHOLE = Layout()
"""Every rank computes all of a layer."""

SLACK = 0.02
"""By how much of its FLOPs the busiest stage may grow for the sake of memory."""


def split(work: Sequence[float], stages: int, sizes: Sequence[float] | None = None) -> list[range]:
    """Neighbouring items in `stages` groups, none empty: the most even in work, or the smallest of those that are about as even.

    Args:
        work: of every item; groups' sums have the least sum of squares.
        stages: groups.
        sizes: of every item. With them the largest group is the smallest that there is without a group that has more than `SLACK` more
            work than the busiest would have without them.

    >>> split([1, 1, 1, 3], 2)
    [range(0, 3), range(3, 4)]
    """
    count, work_of = len(work), _sums(work)

    def uneven(start: int, stop: int) -> float:
        return work_of(start, stop) ** 2

    best = _cut(count, stages, uneven, add)
    if sizes is None:
        return best
    size_of, limit = _sums(sizes), (1 + SLACK) * max(work_of(group.start, group.stop) for group in best)

    def too_much(start: int, stop: int) -> bool:
        return work_of(start, stop) > limit

    small = _cut(count, stages, lambda start, stop: math.inf if too_much(start, stop) else size_of(start, stop), max)
    most = max(size_of(group.start, group.stop) for group in small)
    return _cut(
        count, stages, lambda start, stop: math.inf if too_much(start, stop) or size_of(start, stop) > most else uneven(start, stop), add
    )


def _sums(items: Sequence[float]) -> Callable[[int, int], float]:
    """The sum of the items from one to before another."""
    until = [0.0, *accumulate(items)]
    return lambda start, stop: until[stop] - until[start]


def _cut(count: int, groups: int, cost: Callable[[int, int], float], join: Callable[[float, float], float]) -> list[range]:
    """The cut of `count` items into groups whose costs, joined, are least."""
    best = [0.0] + [math.inf] * count
    cuts: list[list[int]] = []
    for group in range(groups):
        now, cut = [math.inf] * (count + 1), [0] * (count + 1)
        for stop in range(group + 1, count + 1):
            now[stop], cut[stop] = min((join(best[start], cost(start, stop)), start) for start in range(group, stop))
        best = now
        cuts.append(cut)
    bounds = [count]
    for cut in reversed(cuts):
        bounds.append(cut[bounds[-1]])
    bounds.reverse()
    return [range(start, stop) for start, stop in pairwise(bounds)]


def place(manifest: Manifest, entries: list[Entry], stages: int, length: int) -> tuple[list[range], list[list[Entry]]]:
    """The layers of every stage, and its rows of the parameter table.

    A tied embedding is counted on the first and on the last stage.
    """
    layers = manifest.model.num_hidden_layers
    units = split(_work(manifest, entries, length), stages, _sizes(manifest, entries))
    owner = {unit: stage for stage, group in enumerate(units) for unit in group}
    rows: list[list[Entry]] = [[] for _ in range(stages)]
    for entry in entries:
        rows[owner[_unit(manifest, entry)]].append(entry)
        if entry.part == "embedding" and manifest.model.tie_word_embeddings and stages > 1:
            rows[-1].append(entry)
    return [range(group.start, min(group.stop, layers)) for group in units], rows


def distinct(rows: Iterable[Entry]) -> list[Entry]:
    """Rows of a rank's stages, each parameter once; a copy of another (MTP's embedding and head) only where that one lies elsewhere."""
    named = {entry.name: entry for entry in rows}
    return [entry for entry in named.values() if entry.weight.duplicate_of not in named]


def stage_work(manifest: Manifest, stages: int, length: int, layout: Layout = WHOLE) -> list[tuple[float, float, float]]:
    """FLOPs of one rank per token of the forward pass, of input gradients and of weight gradients in each stage, sequences of `length`
    tokens.

    Matrices take as many FLOPs in each of the three. Attention between positions has no weights, and twice its forward FLOPs go
    into input gradients.
    """
    table = entries(manifest)
    ranges, _ = place(manifest, table, stages, length)
    costs, added = layer_costs(manifest), objective_cost(manifest)
    pairs = [cost.pair_macs * float(length) / layout.tp for cost in [*costs, added]]
    work, found = _work(manifest, table, length, layout), []
    for stage, layers in enumerate(ranges):
        units = [*layers, *([len(costs)] if stage == stages - 1 else [])]
        whole, attention = sum(work[unit] for unit in units), sum(pairs[unit] for unit in units)
        found.append((whole, whole + attention, whole - attention))
    return found


def _unit(manifest: Manifest, entry: Entry) -> int:
    """What a row of the table lies with: a layer, or, as one more, head and objectives."""
    if entry.part == "embedding":
        return 0
    last = manifest.model.num_hidden_layers
    return last if entry.layer is None or entry.part in manifest.objectives else entry.layer


def _sizes(manifest: Manifest, entries: list[Entry]) -> list[int]:
    """Parameters of every layer, then of head and objectives together."""
    sizes = [0] * (manifest.model.num_hidden_layers + 1)
    for entry in entries:
        sizes[_unit(manifest, entry)] += entry.weight.numel
    return sizes


def _work(manifest: Manifest, entries: list[Entry], length: int, layout: Layout = WHOLE) -> list[float]:
    """Forward FLOPs of one rank per token in every layer, then in head and objectives together."""
    model, costs, added = manifest.model, layer_costs(manifest), objective_cost(manifest)
    work = [cost.pair_macs * length / layout.tp + 2.0 * cost.reused_parameters for cost in costs]
    last = added.pair_macs * length / layout.tp + 2.0 * added.reused_parameters
    if model.tie_word_embeddings:
        last += 2.0 * model.vocab_size * model.hidden_size
    for entry in entries:
        flops = 2.0 * entry.weight.active_numel / layout.workers(entry.weight)
        if entry.layer is not None and entry.part not in manifest.objectives:
            work[entry.layer] += flops
        elif entry.part != "embedding" and not entry.weight.duplicate_of:
            last += flops
    return [*work, last]
