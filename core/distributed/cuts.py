"""Parts of parameters: what lies on this rank of a tensor that several ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor


@dataclass(frozen=True)
class Cut:
    """One of equal parts of a parameter along a dimension."""

    dim: int
    index: int
    of: int
    mesh: Any = None
    """The `DeviceMesh` of all ranks that hold it; the parts lie along the dimension that is called as `kind` says. Along the others lie
    equal ones, or what FSDP leaves of them."""
    kind: Literal["expert", "tensor"] = "expert"
    """Which ranks share it."""

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor."""
        return whole.chunk(self.of, self.dim)[self.index]

    def shared(self, part: Tensor) -> DTensor:
        """The part, or what FSDP leaves of it, as what it is of: the same memory, for checkpoints that other layouts can read."""
        names, shape = self.mesh.mesh_dim_names, list(part.shape)
        others: list[Placement] = list(part.placements) if isinstance(part, DTensor) else [Replicate()] * (len(names) - 1)
        place = names.index(self.kind)
        placements = [*others[:place], Shard(self.dim), *others[place:]]
        shape[self.dim] *= self.of
        like = torch.empty(shape, device="meta")
        here = part.to_local() if isinstance(part, DTensor) else part
        return DTensor.from_local(here, self.mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def keep_part(model: Any, name: str, cut: Cut) -> None:
    """Leaves a rank's part of a parameter in a model whose parameters have no memory yet, and notes in `model.cuts` what it is."""
    path, _, last = name.rpartition(".")
    parameters = model.get_submodule(path)._parameters
    whole = parameters[last]
    parameters[last] = nn.Parameter(cut.part(whole.detach()).contiguous(), requires_grad=whole.requires_grad)
    model.cuts[name] = cut


def shares_experts(model: Any, name: str) -> bool:
    """Whether a parameter is this rank's part of experts that ranks share, so that its gradient is summed over their replicas."""
    return name in model.cuts and model.cuts[name].kind == "expert"


def fill(tensor: Tensor, whole: Tensor, cut: Cut | None) -> None:
    """Copies what belongs there of a whole tensor into a whole, cut or distributed one."""
    part = whole if cut is None else cut.part(whole)
    if isinstance(tensor, DTensor):
        spread = distribute_tensor(part, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(spread.to_local())
    else:
        tensor.copy_(part)


def like_whole(tensor: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """An unfilled tensor of the whole's shape, in the dtype and on the device of a part."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
