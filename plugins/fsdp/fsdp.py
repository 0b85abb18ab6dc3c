"""Every rank computes with its own rows on all layers, and keeps a part of each."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method

from ...core.backbone import CausalLM
from ...core.contracts import Batch, Loss
from ...core.distributed import world
from ...core.distributed.experts import share_experts
from ...core.distributed.matrices import share_matrices
from ...core.distributed.mesh import Degrees, Mesh
from ...core.distributed.sharded import shard, wrapped
from ...core.distributed.spread import Spread, as_tensor_rank
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from .options import FSDPOptions


class ShardedData(Spread):
    """FSDP2 by block; experts that `ep` spreads are summed over the ranks that hold the same ones."""

    def __init__(self, options: FSDPOptions) -> None:
        super().__init__()
        self.options = options
        self.degrees = Degrees(1, options.dp, options.ep, options.tp)
        self.processes, self.row_multiple = self.degrees.ranks, options.dp * options.micro_batches

    def place(self, model: CausalLM) -> CausalLM:
        """Leaves this rank's shards in the model; a process that is alone keeps it whole."""
        if not world.active():
            return model
        if world.size() != self.processes:
            needed = f"dp * tp = {self.options.dp} * {self.options.tp}"
            raise BestiaryError(f"parallelism: {needed} needs {self.processes} processes, and {world.size()} were started.")
        self.mesh = Mesh(self.degrees)
        along, names = self._along()
        share_matrices(model, self.mesh, along)
        self.traffic = share_experts(model, self.mesh, latency=self.options.latency / 1000, codes=self.options.wire == "auto")
        shard(model, model, along[names], reshard=self.options.reshard)
        register_fsdp_forward_method(model, "loss")
        self.disown(model, copy=self.mesh.data >= self._shards)
        return model

    def describe(self, manifest: Manifest, rank: int) -> str:
        """What a rank holds, in words."""
        part = rank // self.options.tp % self._shards
        return f"part {part} of {self._shards} of every layer{as_tensor_rank(rank, self.options.tp)}"

    def step(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward and backward of one optimizer step.

        Raises:
            BestiaryError: rows that do not split, or a process that is alone.
        """
        loss = self._run(model, batch, backward=True)
        self.sum_all(model)
        return loss

    @torch.no_grad()
    def evaluate(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward only, in evaluation mode."""
        was_training = model.training
        model.eval()
        try:
            return self._run(model, batch.padded(self.row_multiple), backward=False).of_rows(batch.input_ids.shape[0])
        finally:
            model.train(was_training)

    def _run(self, model: CausalLM, batch: Batch, *, backward: bool) -> Loss:
        if not world.active():
            raise world.needs(self.processes, "fsdp")
        counts, parts = model.counts(batch), self.own_rows(batch).chunks(self.options.micro_batches)
        losses: list[Loss] = []
        for index, part in enumerate(parts):
            for module in wrapped(model):
                module.set_requires_gradient_sync(index + 1 == len(parts), recurse=False)
            loss = model.loss(part, counts, share=1 / self.row_multiple, observe=not backward)
            if backward:
                loss.total.backward()
            losses.append(Loss(loss.total.detach(), loss.parts, loss.metrics, loss.observed))
        told = {name: torch.cat([loss.observed[name] for loss in losses]) for name in losses[0].observed}
        return self.whole_loss(losses, [], [told])

    @property
    def _shards(self) -> int:
        """Data ranks that share one copy of the parameters."""
        return self.options.shard or self.options.dp

    def _along(self) -> tuple[DeviceMesh, tuple[str, ...]]:
        """The mesh of all ranks that hold a matrix, and the names of its dimensions beside `tensor`."""
        if self._shards == self.options.dp:
            return self.mesh.dense["tensor", "data"], ("data",)
        ranks = torch.arange(self.processes).view(-1, self._shards, self.options.tp).permute(2, 0, 1)
        return DeviceMesh(self.mesh.kind, ranks, mesh_dim_names=("tensor", "copy", "shard")), ("copy", "shard")
