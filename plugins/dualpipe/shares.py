"""Which rank of a pipeline gets which layers, how many parameters and which part of the work; nothing is built for it."""

from __future__ import annotations

from ...core.contracts import Share
from ...core.manifest import Manifest
from ...core.stages import distinct, place, stage_work
from ...core.table import entries
from .options import PipelineRanks
from .schedules.actions import Schedule


def shares(manifest: Manifest, options: PipelineRanks, schedule: Schedule, length: int) -> list[Share]:
    """One for each pipeline rank, with its data and tensor ranks; `length` is of a sequence, for FLOPs of attention."""
    chain = len(schedule.chains[0])
    layers, rows = place(manifest, entries(manifest), chain, length)
    work = [sum(passes) for passes in stage_work(manifest, chain, length)]
    position = {stage: numbers.index(stage) for numbers in schedule.chains for stage in numbers}
    each, parts = options.dp * options.tp, {"expert": options.ep, "column": options.tp, "row": options.tp, "replicate": 1}
    found = []
    for rank in range(options.pp):
        stages = schedule.stages_of(rank)
        mine = [position[stage] for stage in stages]
        numbers = (e.weight.numel // parts[e.weight.shard] for e in distinct(e for p in mine for e in rows[p]))
        part = sum(work[p] for p in mine) / sum(work) / len(schedule.chains)
        ranks = range(rank * each, (rank + 1) * each)
        found.append(Share(ranks, tuple(stages), tuple(layers[p] for p in mine), sum(numbers), part))
    return found
