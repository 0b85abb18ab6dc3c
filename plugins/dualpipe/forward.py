"""Forward passes only, for evaluation: every micro-batch through every stage, nothing kept.

torch's own evaluation fails for schedules in V shape (2.13), so stages pass tensors on by themselves. A rank takes its stages in the
order of a chain, and all micro-batches in each, so that receives are posted in the order of sends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from ...core.distributed.mesh import Mesh
from .schedules.actions import Schedule
from .stage import Stage
from .tape import alone, unrecorded


@torch.no_grad()
def forward_only(schedule: Schedule, stages: Mapping[int, Stage], like: Tensor, mesh: Mesh, device: torch.device) -> None:
    """Fills the losses and observations of the stages' micro-batches; `like` has the shape that travels."""
    sent: list[dist.Work | None] = []
    waiting: dict[int, list[Tensor]] = {}
    for chain in schedule.chains:
        for place, number in enumerate(chain):
            if number not in stages:
                continue
            before = schedule.rank_of[chain[place - 1]] if place else None
            after = schedule.rank_of[chain[place + 1]] if place + 1 < len(chain) else None
            outputs = []
            for index in range(len(stages[number].micro_batches)):
                x = _input(number, index, before, waiting, like, mesh, device)
                output = alone(unrecorded(stages[number].segments(index), x))
                assert output is not None
                if after is not None and after != mesh.pipeline:
                    sent.append(dist.isend(output.contiguous(), mesh.rank_of(after)))
                outputs.append(output)
            if after == mesh.pipeline:
                waiting[chain[place + 1]] = outputs
    for work in sent:
        if work is not None:
            work.wait()


def _input(
    number: int, index: int, before: int | None, waiting: dict[int, list[Tensor]], like: Tensor, mesh: Mesh, device: torch.device
) -> Tensor:
    if before is None:
        return torch.empty(0, device=device)
    if before == mesh.pipeline:
        return waiting[number][index]
    buffer = torch.empty(like.shape, dtype=like.dtype, device=device)
    dist.recv(buffer, mesh.rank_of(before))
    return buffer
