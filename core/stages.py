"""Layers cut into pipeline stages, as even in counted FLOPs as whole layers allow.

The embedding lies on the first stage; the final norm, the head and what objectives add on the last, which may hold no layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from .accounting import layer_costs, objective_cost
from .layout import Layout
from .manifest import Manifest
from .table import entries
from .weights import Entry

WHOLE = Layout()
"""Every rank computes all of a layer."""


def split(weights: Sequence[float], stages: int) -> list[range]:
    """Neighbouring items in `stages` groups whose sums have the least sum of squares; no group is empty.

    >>> split([1, 1, 1, 3], 2)
    [range(0, 3), range(3, 4)]
    """
    count, until = len(weights), [0.0, *accumulate(weights)]
    best = [0.0] + [float("inf")] * count
    cuts: list[list[int]] = []
    for stage in range(stages):
        now, cut = [float("inf")] * (count + 1), [0] * (count + 1)
        for stop in range(stage + 1, count + 1):
            now[stop], cut[stop] = min((best[start] + (until[stop] - until[start]) ** 2, start) for start in range(stage, stop))
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
    ranges = [range(unit.start, min(unit.stop, layers)) for unit in split(_work(manifest, entries, length), stages)]
    owner = {layer: stage for stage, unit in enumerate(ranges) for layer in unit}
    rows: list[list[Entry]] = [[] for _ in range(stages)]
    for entry in entries:
        inside = entry.layer is not None and entry.part not in manifest.objectives
        first = entry.part == "embedding"
        rows[owner[entry.layer] if inside and entry.layer is not None else 0 if first else stages - 1].append(entry)
        if first and manifest.model.tie_word_embeddings and stages > 1:
            rows[-1].append(entry)
    return ranges, rows


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
