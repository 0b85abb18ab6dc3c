"""FSDP2 over the data ranks of a stage, with sums for averages. Routed experts that ranks share already stay out of it; parts of
matrices that tensor ranks share are spread once more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ..backbone import Block, CausalLM
from .cuts import shares_experts


def shard(root: nn.Module, model: CausalLM, mesh: DeviceMesh, *, reshard: bool) -> None:
    """Spreads the parameters of `root`, each block on its own.

    Args:
        root: a module whose parameters belong to `model`.
        model: knows which parameters are experts' parts.
        mesh: one dimension to shard over, or (copies, shards).
        reshard: whether a block's parameters are given back after its forward pass.
    """
    experts = {id(parameter) for name, parameter in model.named_parameters() if shares_experts(model, name)}
    ignored = {parameter for parameter in root.parameters() if id(parameter) in experts}
    blocks = [module for module in root.modules() if isinstance(module, Block)]
    for module in (*blocks, root):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, ignored_params=ignored)
    for module in wrapped(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


@contextmanager
def gathered(roots: Iterable[nn.Module]) -> Iterator[None]:
    """All parameters are whole inside, for passes that do not call modules in the order that FSDP expects."""
    modules = [module for root in roots for module in wrapped(root)]
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def wrapped(root: nn.Module) -> Iterable[FSDPModule]:
    """The modules whose parameters FSDP gathers at once."""
    return (module for module in root.modules() if isinstance(module, FSDPModule))
