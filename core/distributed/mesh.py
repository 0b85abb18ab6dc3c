"""Which rank is where: pipeline, data, tensor and expert ranks of one world.

    rank  = pipeline * stage_ranks + inner       where stage_ranks = data_ranks * tensor_ranks
    inner = data * tensor_ranks + tensor         dense view   (pipeline, tensor, data)
    inner = replica * expert_ranks + expert      sparse view  (pipeline, replica, expert)

Neighbours in the world are tensor ranks, which talk most, then data ranks of one stage, so that experts of a stage are exchanged within
a node where there are nodes. The dense mesh names `tensor` before `data`, since FSDP cuts again what tensor ranks have cut already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from . import world


@dataclass(frozen=True)
class Degrees:
    """How many ranks do what."""

    pipeline: int = 1
    data: int = 1
    expert: int = 1
    """Of the ranks of a stage, how many share its experts."""
    tensor: int = 1
    """How many ranks share the matrices of a layer, and the rows of a data rank."""

    @property
    def stage(self) -> int:
        """Ranks of a stage."""
        return self.data * self.tensor

    @property
    def ranks(self) -> int:
        return self.pipeline * self.stage


class Mesh:
    """The world as one rank sees it. Made on every rank at once, since making groups is collective."""

    def __init__(self, degrees: Degrees, device: torch.device | None = None) -> None:
        assert degrees.ranks == world.size() and degrees.stage % degrees.expert == 0
        self.degrees = degrees
        self.kind = "cpu" if device is None else device.type
        self.pipeline, self.inner = divmod(world.rank(), degrees.stage)
        """This rank's coordinates."""
        self.data, self.tensor = divmod(self.inner, degrees.tensor)
        self.replica, self.expert = divmod(self.inner, degrees.expert)

    @cached_property
    def dense(self) -> DeviceMesh:
        """Dimensions `pipeline`, `tensor` and `data`."""
        d = self.degrees
        ranks = torch.arange(d.ranks).view(d.pipeline, d.data, d.tensor).transpose(1, 2)
        return DeviceMesh(self.kind, ranks, mesh_dim_names=("pipeline", "tensor", "data"))

    @cached_property
    def sparse(self) -> DeviceMesh:
        """Dimensions `pipeline`, `replica` and `expert`."""
        d = self.degrees
        return init_device_mesh(self.kind, (d.pipeline, d.stage // d.expert, d.expert), mesh_dim_names=("pipeline", "replica", "expert"))

    def group(self, name: str) -> Any:
        """The process group of one dimension through this rank; None for one of a single rank."""
        mesh = self.dense if name in ("pipeline", "tensor", "data") else self.sparse
        return mesh.get_group(name) if mesh.size(mesh.mesh_dim_names.index(name)) > 1 else None  # type: ignore[union-attr]

    def rank_of(self, pipeline: int) -> int:
        """The world's number of a pipeline rank with this rank's other coordinates."""
        return pipeline * self.degrees.stage + self.inner

    def across(self, pipelines: tuple[int, ...]) -> Any:
        """The group of those pipeline ranks with this rank's other coordinates; None where this rank is not among them.

        Collective: every rank calls it for the same ranks in the same order.
        """
        mine = None
        for inner in range(self.degrees.stage):
            group = dist.new_group([pipeline * self.degrees.stage + inner for pipeline in pipelines])
            if inner == self.inner and self.pipeline in pipelines:
                mine = group
        return mine
