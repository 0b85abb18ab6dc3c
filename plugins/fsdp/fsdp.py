"""Every rank computes with its own rows on all layers, and keeps a part of each."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import register_fsdp_forward_method

from ...core.backbone import CausalLM
from ...core.contracts import Batch, Loss
from ...core.distributed import world
from ...core.distributed.experts import share_experts
from ...core.distributed.gradients import sum_gradients
from ...core.distributed.mesh import Degrees, Mesh
from ...core.distributed.sharded import shard, wrapped
from ...core.distributed.spread import Spread
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from .options import FSDPOptions


class ShardedData(Spread):
    """FSDP2 by block; experts that `ep` spreads are summed over the ranks that hold the same ones."""

    def __init__(self, options: FSDPOptions) -> None:
        super().__init__()
        self.options = options
        self.degrees = Degrees(1, options.dp, options.ep)
        self.processes, self.row_multiple = options.dp, options.dp * options.micro_batches

    def place(self, model: CausalLM) -> CausalLM:
        """Leaves this rank's shards in the model; a process that is alone keeps it whole."""
        if not world.active():
            return model
        if world.size() != self.processes:
            raise BestiaryError(f"parallelism.dp = {self.processes} needs as many processes, and {world.size()} were started.")
        self.mesh = Mesh(self.degrees)
        self.traffic = share_experts(model, self.mesh, latency=self.options.latency / 1000, codes=self.options.wire == "auto")
        shards = self.options.shard or self.options.dp
        shard(model, model, self._shards(shards), reshard=self.options.reshard)
        register_fsdp_forward_method(model, "loss")
        copy = self.mesh.data >= shards
        self.owned = {name: not copy for name, _ in model.named_parameters() if name not in model.cuts}
        self.owned |= {name: self.mesh.replica == 0 for name in model.cuts}
        return model

    def describe(self, manifest: Manifest, rank: int) -> str:
        """What a rank holds, in words."""
        shards = self.options.shard or self.options.dp
        return f"part {rank % shards} of {shards} of every layer"

    def step(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward and backward of one optimizer step.

        Raises:
            BestiaryError: rows that do not split, or a process that is alone.
        """
        loss = self._run(model, batch, backward=True)
        named = dict(model.named_parameters())
        sum_gradients([named[name] for name in model.cuts if name in named], self.mesh.group("replica"))
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

    def _shards(self, shards: int) -> DeviceMesh:
        if shards == self.options.dp:
            return self.mesh.dense["data"]
        return DeviceMesh(self.mesh.kind, torch.arange(self.options.dp).view(-1, shards), mesh_dim_names=("copy", "shard"))
