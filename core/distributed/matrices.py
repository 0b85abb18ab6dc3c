"""Tensor parallelism: layers that share their matrices, each cut as its component's own plan says (`Weight.shard`, `Weight.unit`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..assemble import state
from ..backbone import CausalLM
from ..table import own_entries
from .cuts import Cut, keep_part
from .mesh import Mesh
from .tensor_ranks import TensorRanks


def share_matrices(model: CausalLM, mesh: Mesh, along: Any) -> None:
    """Leaves this rank's parts of matrices in the model, and tells the layers that they are parts.

    Only what stands in a module that offers `share_matrices(ranks)` is cut; everything else stays whole, alike on all tensor ranks.

    Args:
        model: on meta.
        mesh: whose `tensor` ranks share the matrices.
        along: the `DeviceMesh` of all ranks that hold a matrix of this rank's layers, with a dimension `tensor`.
    """
    size = mesh.degrees.tensor
    if size == 1:
        return
    sharing = {path: module for path, module in model.named_modules() if hasattr(module, "share_matrices")}
    held, found = state(model), dict[str, nn.Module]()
    for name, entry in own_entries(model.manifest).items():
        owner = _owner(name, sharing)
        if owner is not None and name in held and entry.weight.shard in ("column", "row"):
            keep_part(model, name, Cut(entry.weight.cut_dim, mesh.tensor, size, along, "tensor"))
            found[owner] = sharing[owner]
    ranks = TensorRanks(size, mesh.tensor, mesh.group("tensor"))
    for module in found.values():
        module.share_matrices(ranks)  # type: ignore[operator]


def _owner(name: str, sharing: Mapping[str, nn.Module]) -> str | None:
    """The path of the innermost sharing module that a parameter stands in."""
    path = name
    while path and path not in sharing:
        path = path.rpartition(".")[0]
    return path or None
