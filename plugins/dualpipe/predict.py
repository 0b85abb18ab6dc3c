"""What a step at scale will take, before anything runs: the simulated schedule, with times from counted FLOPs and a given rate.

Communication is counted in bytes and not in time: how much of it a pair hides is what `overlap` states, as an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.distributed.reach import expected_reach, expert_groups
from ...core.layout import Layout
from ...core.manifest import Manifest
from ...core.stages import stage_work
from ...core.table import entries
from ...core.weights import Entry
from .schedules.catalog import make
from .schedules.simulate import Times, simulate

BF16 = 2
"""Bytes of a number that travels between stages and data ranks."""
NODE = 8
"""GPUs of a node."""


@dataclass(frozen=True)
class Prediction:
    """A step of one layout."""

    seconds: float
    """Of forward and backward passes; the optimizer and unhidden communication come on top."""
    bubble: float
    tokens: int
    """Of a step, on all ranks."""
    gpus: int
    flops: float
    """Of a step, forward and backward."""
    expert_bytes: float
    """That the busiest rank sends to experts on other ranks in a step, and home, activations and gradients."""
    reach: float
    """Ranks with experts of one token, of those that share the experts of a layer; all choices being equally likely."""
    nodes: float | None
    """The same of nodes of `NODE` ranks; None where experts do not lie on whole nodes."""
    tensor_bytes: float
    """That a rank sends for sums over tensor ranks, at most: two forward and two backward in every layer."""
    stage_bytes: float
    """That a rank sends to the stages next to it, forward and backward."""
    data_bytes: float
    """Of gradients that a rank sums with its data ranks in a step, and gathers as parameters."""

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return self.tokens / self.seconds / self.gpus

    @property
    def hours_per_trillion(self) -> float:
        """GPU hours per trillion tokens."""
        return 1e12 / self.tokens_per_second / 3600


def predict(
    manifest: Manifest,
    *,
    layout: Layout,
    schedule: str,
    micro_batches: int,
    length: int,
    rate: float,
    micro_batch: int = 1,
    overlap: float = 0.8,
    recompute: bool = False,
) -> Prediction:
    """A step of `micro_batches` micro-batches on every data rank.

    Args:
        manifest: the model.
        layout: its degrees; `tp` divides the products that tensor ranks share, which embedding, head and latents are not among.
        schedule: one of `schedules.catalog.SCHEDULES`.
        micro_batches: of a step, on each data rank.
        length: tokens of a sequence.
        rate: FLOP/s that a GPU reaches while it computes.
        micro_batch: sequences of a micro-batch.
        overlap: an overlapped pair, as a part of its passes one by one; what is hidden is in it.
        recompute: whether every backward pass begins with another forward pass.

    Raises:
        BestiaryError: numbers that the schedule does not take.
    """
    table = make(schedule, ranks=layout.pp, microbatches=micro_batches)
    stages, tokens = len(table.chains[0]), length * micro_batch
    work, shared = stage_work(manifest, stages, length), stage_work(manifest, stages, length, layout)
    place = {stage: chain.index(stage) for chain in table.chains for stage in chain}
    each = [tuple(flops * tokens / rate for flops in shared[place[stage]]) for stage in range(len(table.rank_of))]
    forward, input, weight = (tuple(column) for column in zip(*each, strict=True))
    if recompute:
        input = tuple(i + f for i, f in zip(input, forward, strict=True))
    run = simulate(table, Times(forward, input, weight, overlap=overlap))
    rows = entries(manifest)
    held = [entry for entry in rows if entry.weight.shard == "expert"]
    layers = {entry.layer: entry for entry in held}
    reach = max((_reach(entry, manifest, layout.ep) for entry in layers.values()), default=0.0)
    whole = layout.ep > NODE and layout.ep % NODE == 0
    return Prediction(
        seconds=run.makespan,
        bubble=run.bubble,
        tokens=tokens * micro_batches * layout.dp,
        gpus=layout.gpus,
        flops=sum(sum(stage) for stage in work) * tokens * micro_batches * layout.dp,
        expert_bytes=_row_bytes(manifest) * reach * (1 - 1 / layout.ep) * tokens / layout.tp * micro_batches * -(-len(layers) // layout.pp),
        reach=reach,
        nodes=max((_reach(entry, manifest, layout.ep // NODE) for entry in layers.values()), default=0.0) if whole else None,
        tensor_bytes=_tensor_bytes(manifest, layout) * tokens * micro_batches,
        stage_bytes=2 * BF16 * manifest.model.hidden_size * tokens * micro_batches * stages / layout.pp,
        data_bytes=_data_bytes(rows, layout),
    )


def _reach(entry: Entry, manifest: Manifest, places: int) -> float:
    """Of so many places with a layer's experts, how many have some of one token."""
    experts = entry.weight.shape[0]
    k = round(experts * entry.weight.active_numel / entry.weight.numel)
    groups, kept = expert_groups(manifest, entry.layer or 0)
    return expected_reach(experts, k, places, groups=groups, kept=kept)


def _row_bytes(manifest: Manifest) -> float:
    """Of a row that goes to another rank and comes home, and of its gradients."""
    storage = manifest.precision.storage()
    there = sum(storage.activation if way is None else way for way in (storage.dispatch, storage.dispatch_gradient))
    return manifest.model.hidden_size * (there + 2 * storage.activation)


def _tensor_bytes(manifest: Manifest, layout: Layout) -> float:
    """Of one token on a rank with as many layers as any: a sum sends each number twice, but for a rank's own part."""
    layers = -(-manifest.model.num_hidden_layers // layout.pp)
    return 4 * BF16 * manifest.model.hidden_size * layers * 2 * (layout.tp - 1) / layout.tp


def _data_bytes(rows: list[Entry], layout: Layout) -> float:
    """fp32 gradients scattered and bf16 parameters gathered, of a rank's mean share."""
    total = 0.0
    for entry in rows:
        expert = entry.weight.shard == "expert"
        ranks = layout.dp * layout.tp // layout.ep if expert else layout.dp
        local = entry.weight.numel / layout.pp / (layout.ep if expert else layout.tp if entry.weight.shard != "replicate" else 1)
        total += local * (4 + BF16) * (ranks - 1) / ranks
    return total
