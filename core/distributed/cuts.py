"""Parts of parameters: what lies on this rank of a tensor that several ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor


@dataclass(frozen=True)
class Cut:
    """One of equal parts of a parameter along a dimension."""

    dim: int
    index: int
    of: int
    mesh: Any = None
    """The `DeviceMesh` of all ranks that hold it; the parts lie along its last dimension, equal ones along the others."""

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""
        return whole.chunk(self.of, self.dim)[self.index]

    def shared(self, part: Tensor) -> DTensor:
        """The part as what it is of: the same memory, for checkpoints that other layouts can read."""
        placements: list[Placement] = [Replicate()] * (self.mesh.ndim - 1) + [Shard(self.dim)]
        return DTensor.from_local(part, self.mesh, placements, run_check=False)


def fill(tensor: Tensor, whole: Tensor, cut: Cut | None) -> None:
    """Copies what belongs there of a whole tensor into a whole, cut or distributed one."""
    if isinstance(tensor, DTensor):
        spread = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(spread.to_local())
    else:
        tensor.copy_(whole if cut is None else cut.part(whole))


def like_whole(tensor: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """An unfilled tensor of the whole's shape, in the dtype and on the device of a part."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
