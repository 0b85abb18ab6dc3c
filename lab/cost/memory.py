"""Memory of every rank of a layout, from the parameter table and each row's own sharding plan; no model is known here.

What is counted, and how (docs/cost.md says more):

- *parameters*: what a rank computes with. Without ZeRO these are master weights and the copies of matrices, as in
  `bestiary show`; with it, one copy in the precision's dtype of use, the master weights being among the shared states.
- *gradients*: in the precision's dtype, of everything that is trained.
- *optimizer*: both moments of AdamW, and master weights where parameters are used in fewer bytes than they are kept in.
- *activations*: what autograd keeps of each micro-batch in flight, experts evenly loaded. Recomputing blocks keeps the input of each,
  and one block in full while it runs backward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...core.accounting import COPIED, Memory, layer_costs, objective_cost
from ...core.component import Cost, Storage
from ...core.errors import BestiaryError
from ...core.layout import Layout, parse_layout
from ...core.manifest import Manifest
from ...core.stages import distinct, place
from ...core.table import entries
from ...core.weights import Entry
from .gpus import Gpu, find_gpu
from .layout import check_layout
from .schedules import Schedule, find_schedule

Recompute = Literal["block", "none"]


@dataclass(frozen=True)
class Rank:
    """One pipeline rank; every data-parallel rank beside it holds as much."""

    rank: int
    stages: tuple[range, ...]
    """Layers of each stage that it holds."""
    parameters: int
    """Numbers that it holds, before states are shared."""
    memory: Memory
    in_flight: tuple[int, ...]
    """Micro-batches of each stage whose activations it keeps."""


@dataclass(frozen=True)
class Request:
    """What a plan was asked for."""

    layout: Layout
    schedule: Schedule
    sequence_length: int
    micro_batch: int = 1
    """Sequences of a micro-batch."""
    micro_batches: int | None = None
    """Of an optimizer step; enough to fill the pipeline when None."""
    recompute: Recompute = "block"
    moments: float | None = None
    """Bytes of both moments of a parameter; the precision's own when None."""


@dataclass(frozen=True)
class Plan:
    """Every rank's memory, and whether it fits."""

    manifest: Manifest
    request: Request
    gpu: Gpu
    ranks: tuple[Rank, ...]
    otherwise: int
    """Bytes of the worst rank with the other choice of recomputing."""

    @property
    def worst(self) -> Rank:
        return max(self.ranks, key=lambda rank: rank.memory.total)

    @property
    def fits(self) -> bool:
        return self.worst.memory.total <= self.gpu.memory

    def table(self) -> dict[str, Any]:
        request, layout = self.request, self.request.layout
        ranks = [
            {
                "rank": rank.rank,
                "layers": [[stage.start, stage.stop] for stage in rank.stages],
                "in_flight": list(rank.in_flight),
                "parameters": rank.parameters,
                "memory": vars(rank.memory) | {"total": rank.memory.total},
            }
            for rank in self.ranks
        ]
        return {
            "model": self.manifest.name,
            "digest": self.manifest.digest,
            "gpus": layout.gpus,
            "gpu": self.gpu.model_dump(mode="json"),
            "layout": vars(layout),
            "schedule": request.schedule.name,
            "sequence_length": request.sequence_length,
            "micro_batch": request.micro_batch,
            "micro_batches": request.micro_batches,
            "recompute": request.recompute,
            "ranks": ranks,
            "worst": self.worst.rank,
            "fits": self.fits,
        }


def plan(
    manifest: Manifest,
    *,
    gpus: int,
    layout: str | Layout = "",
    gpu: str | Gpu = "h800",
    schedule: str = "1f1b",
    sequence_length: int | None = None,
    micro_batch: int = 1,
    micro_batches: int | None = None,
    recompute: Recompute = "block",
    moments: float | None = None,
) -> Plan:
    """Memory per rank of a model on `gpus` GPUs.

    Args:
        manifest: the model.
        gpus: in all.
        layout: `pp=16,ep=64,zero=1`; data parallelism with shared optimizer states by default.
        gpu: an accelerator of `gpus.toml`, or one's own.
        schedule: of the pipeline, one of `SCHEDULES`.
        sequence_length: tokens per sequence; at most 4096 by default, or what the model was made for.
        micro_batch: sequences of a micro-batch.
        micro_batches: of an optimizer step; enough to fill the pipeline by default.
        recompute: blocks in the backward pass, or nothing.
        moments: bytes of both AdamW moments of a parameter, 4 for bf16; the precision's own by default.

    Raises:
        BestiaryError: an unknown GPU or schedule, or a layout that does not divide GPUs, layers, experts or heads.
    """
    if gpus < 1 or micro_batch < 1 or (micro_batches is not None and micro_batches < 1):
        raise BestiaryError(f"{gpus} GPUs, micro-batches of {micro_batch}: expected numbers above 0.")
    cut = parse_layout(layout, gpus) if isinstance(layout, str) else layout
    length = sequence_length or min(4096, manifest.model.max_position_embeddings)
    request = Request(cut, find_schedule(schedule), length, micro_batch, micro_batches, recompute, moments)
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    table = entries(manifest)
    check_layout(cut, manifest, table, request.schedule)
    other = replace(request, recompute="none" if recompute == "block" else "block")
    ranks, others = (_Count(manifest, table, choice).ranks() for choice in (request, other))
    return Plan(manifest, request, gpu, ranks, max(rank.memory.total for rank in others))


class _Count:
    """The sums of one request."""

    def __init__(self, manifest: Manifest, table: list[Entry], request: Request) -> None:
        self.manifest, self.request, self.layout = manifest, request, request.layout
        self.storage: Storage = manifest.precision.storage()
        stages = request.schedule.stages(request.layout.pp)
        self.layers, self.rows = place(manifest, table, stages, request.sequence_length)
        self.costs, self.added = layer_costs(manifest), objective_cost(manifest)

    def ranks(self) -> tuple[Rank, ...]:
        return tuple(self._rank(rank) for rank in range(self.layout.pp))

    def _rank(self, rank: int) -> Rank:
        schedule, pp = self.request.schedule, self.layout.pp
        held = schedule.held(rank, pp)
        flights = tuple(schedule.in_flight(stage, pp, self.request.micro_batches) for stage in held)
        rows = distinct([entry for stage in held for entry in self.rows[stage]])
        weights, gradients, optimizer = (int(sum(column)) for column in zip(*map(self._row, rows), strict=True))
        activations = sum(count * self._kept(stage) for stage, count in zip(held, flights, strict=True)) + self._running(held)
        memory = Memory(weights + int(self._gathered(held)), gradients, optimizer, int(activations))
        parameters = int(sum(self._local(entry) for entry in rows))
        return Rank(rank, tuple(self.layers[stage] for stage in held), parameters, memory, flights)

    def _local(self, entry: Entry) -> float:
        """Numbers of a parameter on one rank of its stage."""
        parts = {"expert": self.layout.ep, "column": self.layout.tp, "row": self.layout.tp, "replicate": 1}
        return entry.weight.numel / parts[entry.weight.shard]

    def _sharers(self, entry: Entry) -> int:
        """Ranks that hold the same numbers and may share their states."""
        expert = entry.weight.shard == "expert"
        same = self.layout.dp * self.layout.tp // self.layout.ep if expert else self.layout.dp
        return same * self.request.schedule.copies

    def _row(self, entry: Entry) -> tuple[float, float, float]:
        """Bytes of one parameter on one rank: parameters, gradients, optimizer."""
        local, sharers, zero, storage = self._local(entry), self._sharers(entry), self.layout.zero, self.storage
        role = entry.weight.role
        if role == "state":
            return 4 * local, 0, 0
        used, moments = self._used(entry), storage.moments if self.request.moments is None else self.request.moments
        gradients = storage.gradient * local / (sharers if zero >= 2 else 1)
        if zero == 0:
            return local * (storage.master + (storage.copy if role in COPIED else 0)), gradients, local * moments
        master = storage.master if storage.master > used else 0
        return local * used / (sharers if zero == 3 else 1), gradients, local * (master + moments) / sharers

    def _used(self, entry: Entry) -> float:
        """Bytes per number of what is computed with."""
        return self.storage.inference if entry.weight.role in ("linear", "expert") else self.storage.inference_high

    def _gathered(self, held: tuple[int, ...]) -> float:
        """ZeRO-3 gathers a block's parameters to run it, and the next one's meanwhile."""
        if self.layout.zero < 3:
            return 0.0
        blocks: dict[tuple[str, int | None], float] = {}
        for entry in (entry for stage in held for entry in self.rows[stage] if entry.weight.role != "state"):
            key = (entry.part if entry.layer is None else "block", entry.layer)
            blocks[key] = blocks.get(key, 0.0) + self._local(entry) * self._used(entry)
        return 2 * max(blocks.values(), default=0.0)

    def _tokens(self) -> float:
        """Of a micro-batch on one rank; tensor-parallel ranks have the same."""
        return self.request.micro_batch * self.request.sequence_length

    def _saved(self, cost: Cost) -> float:
        """Bytes per token on one rank."""
        shared = cost.cut_elements + (cost.dealt_elements if self.layout.ep > 1 else 0)
        elements = cost.saved_elements - shared * (1 - 1 / self.layout.tp)
        return elements * self.storage.activation + 4 * cost.saved_fp32

    def _kept(self, stage: int) -> float:
        """Bytes that one micro-batch in flight keeps on a stage."""
        model, costs = self.manifest.model, [self.costs[layer] for layer in self.layers[stage]]
        if self.request.recompute == "block":
            kept = len(costs) * model.hidden_size * self.storage.activation
        else:
            kept = sum(self._saved(cost) for cost in costs)
        if stage == len(self.rows) - 1:
            heads = 1 + self.added.reused_parameters / (model.vocab_size * model.hidden_size)
            kept += self._saved(self.added) + heads * (model.vocab_size + 2 * model.hidden_size) * self.storage.activation
        return self._tokens() * kept

    def _running(self, held: tuple[int, ...]) -> float:
        """The recomputed activations of the one block that runs backward."""
        if self.request.recompute == "none":
            return 0.0
        blocks = [self._saved(self.costs[layer]) for stage in held for layer in self.layers[stage]]
        return self._tokens() * max(blocks, default=0.0)
