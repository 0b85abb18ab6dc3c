"""Experts on several ranks, and the exchange of rows between tokens and experts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..assemble import state
from ..backbone import CausalLM
from ..exchange import Handle, Transport
from ..table import own_entries
from .cuts import Cut, keep_part
from .deal import Dealt
from .mesh import Mesh
from .tensor_ranks import ALONE, TensorRanks


@dataclass
class Traffic:
    """What a rank has sent to experts and tokens of other ranks."""

    bytes: int = 0


@dataclass(frozen=True)
class ExpertRanks:
    """The ranks that share the experts of a layer: rank i holds the i-th of equal ranges."""

    size: int = 1
    index: int = 0
    group: Any = None
    latency: float = 0.0
    """Seconds that are added to every exchange, to see what overlap hides; 0 in earnest."""
    tensor: TensorRanks = ALONE
    """The ranks that have the same rows as this one; each sends a part of them."""
    codes: bool = True
    """Whether rows travel as codes where a layer's `wire` has some."""
    traffic: Traffic = field(default_factory=Traffic)

    def meet(self, counts: Tensor) -> Transport:
        """Tells every rank how many rows it will get: `[ranks]` rows for each, sorted by rank."""
        going = self.tensor.deal_counts(counts)
        coming = going.clone()
        if self.group is not None:
            dist.all_to_all_single(coming, going.contiguous(), group=self.group)
        transport = AllToAll(self, going.tolist(), coming.tolist())
        return transport if self.tensor.size == 1 else Dealt(transport, self.tensor, int(counts.sum()))


@dataclass(frozen=True)
class AllToAll:
    """Rows to the ranks of a group, as many as were agreed; fp8 travels as bytes."""

    ranks: ExpertRanks
    going: list[int]
    coming: list[int]

    @property
    def back(self) -> AllToAll:
        """The way back."""
        return AllToAll(self.ranks, self.coming, self.going)

    def start(self, rows: Tensor) -> Handle:
        """Begins to send `[N, ...]`."""
        rows, ready = rows.contiguous(), time.perf_counter() + self.ranks.latency
        if self.ranks.group is None:
            return Arriving(rows.clone(), None, ready)
        self.ranks.traffic.bytes += (len(rows) - self.going[self.ranks.index]) * rows[:1].nbytes
        came = rows.new_empty(sum(self.coming), *rows.shape[1:])
        sent, into = (t.view(torch.uint8) if t.dtype.is_floating_point and t.element_size() == 1 else t for t in (rows, came))
        work = dist.all_to_all_single(into, sent, self.coming, self.going, group=self.ranks.group, async_op=True)
        return Arriving(came, (work, rows), ready)


@dataclass(frozen=True)
class Arriving:
    """Rows on their way."""

    rows: Tensor
    work: Any
    """The collective and what it reads from."""
    ready: float

    def wait(self) -> Tensor:
        """The rows, once they are there."""
        if self.work is not None:
            self.work[0].wait()
        if (left := self.ready - time.perf_counter()) > 0:
            time.sleep(left)
        return self.rows


def share_experts(model: CausalLM, mesh: Mesh, *, latency: float = 0.0, codes: bool = True) -> Traffic:
    """Leaves this rank's experts in the model, and tells layers with experts of their ranks; returns the meter of what they will send.

    Args:
        model: on meta.
        mesh: whose `expert` ranks share the experts.
        latency: seconds to add to every exchange.
        codes: whether rows travel as codes where the layer that gets them allows it.
    """
    size, index, traffic = mesh.degrees.expert, mesh.expert, Traffic()
    if size > 1:
        held, cut = state(model), Cut(0, index, size, mesh.sparse["replica", "expert"])
        for name, entry in own_entries(model.manifest).items():
            if entry.weight.shard == "expert" and name in held:
                keep_part(model, name, cut)
    if size > 1 or latency:
        tensor = TensorRanks(mesh.degrees.tensor, mesh.tensor, mesh.group("tensor")) if size > 1 else ALONE
        ranks = ExpertRanks(size, index, mesh.group("expert"), latency, tensor, codes, traffic)
        for module in model.modules():
            if hasattr(module, "share_experts"):
                module.share_experts(ranks)  # type: ignore[operator]
    return traffic
