"""Which rank is where: pipeline, data and expert ranks of one world.

    rank = pipeline * data_ranks + data          dense view   (pipeline, data)
    data = replica * expert_ranks + expert       sparse view  (pipeline, replica, expert)

Neighbours in the world are data ranks of one stage, so that experts of a stage are exchanged within a node where there are nodes.
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
    """Of the data ranks of a stage, how many share its experts."""

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data


class Mesh:
    """The world as one rank sees it. Made on every rank at once, since making groups is collective."""

    def __init__(self, degrees: Degrees, device: torch.device | None = None) -> None:
        assert degrees.ranks == world.size() and degrees.data % degrees.expert == 0
        self.degrees = degrees
        self.kind = "cpu" if device is None else device.type
        self.pipeline, self.data = divmod(world.rank(), degrees.data)
        """This rank's coordinates."""
        self.replica, self.expert = divmod(self.data, degrees.expert)

    @cached_property
    def dense(self) -> DeviceMesh:
        """Dimensions `pipeline` and `data`."""
        return init_device_mesh(self.kind, (self.degrees.pipeline, self.degrees.data), mesh_dim_names=("pipeline", "data"))

    @cached_property
    def sparse(self) -> DeviceMesh:
        """Dimensions `pipeline`, `replica` and `expert`."""
        d = self.degrees
        return init_device_mesh(self.kind, (d.pipeline, d.data // d.expert, d.expert), mesh_dim_names=("pipeline", "replica", "expert"))

    def group(self, name: str) -> Any:
        """The process group of one dimension through this rank; None for one of a single rank."""
        mesh = self.dense if name in ("pipeline", "data") else self.sparse
        return mesh.get_group(name) if mesh.size(mesh.mesh_dim_names.index(name)) > 1 else None  # type: ignore[union-attr]

    def rank_of(self, pipeline: int) -> int:
        """The world's number of a pipeline rank with this rank's data coordinate."""
        return pipeline * self.degrees.data + self.data

    def across(self, pipelines: tuple[int, ...]) -> Any:
        """The group of those pipeline ranks with this rank's data coordinate; None where this rank is not among them.

        Collective: every rank calls it for the same ranks in the same order.
        """
        mine = None
        for data in range(self.degrees.data):
            group = dist.new_group([pipeline * self.degrees.data + data for pipeline in pipelines])
            if data == self.data and self.pipeline in pipelines:
                mine = group
        return mine
