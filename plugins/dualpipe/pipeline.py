"""A model as a pipeline: where its layers lie, and how a step and an evaluation run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.backbone import CausalLM, Elsewhere
from ...core.contracts import Batch, Context, Loss, Share
from ...core.distributed import world
from ...core.distributed.experts import share_experts
from ...core.distributed.matrices import share_matrices
from ...core.distributed.mesh import Degrees, Mesh
from ...core.distributed.sharded import gathered, shard
from ...core.distributed.spread import Spread, as_tensor_rank
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from ...core.stages import place
from ...core.table import entries
from .adapter import RunningStage, Runtime, prepare_shards
from .forward import forward_only
from .options import BothWaysOptions, PipelineRanks, name_of, schedule
from .shares import shares
from .stage import MicroBatch, Stage, example

LENGTH = 4096
"""Tokens of a sequence, at most, for which stages are made equally expensive."""


class Pipeline(Spread):
    """Stages of a model on the ranks of a pipeline, and data-parallel copies of it."""

    def __init__(self, options: PipelineRanks, component: str) -> None:
        super().__init__()
        self.options, self.component = options, component
        self.schedule = schedule(name_of(options, component), options)
        self.degrees = Degrees(options.pp, options.dp, options.ep, options.tp)
        self.processes = self.degrees.ranks
        self.row_multiple = options.dp * options.micro_batches
        self.stages: dict[int, Stage] = {}
        """Of this rank, by their number."""
        self.layers: list[range] = []
        """Of every stage of a chain."""
        self._runtime: tuple[tuple[int, int], Runtime] | None = None
        self._length: int | None = None

    def place(self, model: CausalLM) -> CausalLM:
        """Leaves this rank's stages in the model; a process that is alone keeps it whole, to load, save and generate."""
        if not world.active():
            return model
        if world.size() != self.degrees.ranks:
            raise BestiaryError(
                f"parallelism: pp * dp * tp = {self.options.pp} * {self.options.dp} * {self.options.tp} needs {self.degrees.ranks} "
                f"processes, and {world.size()} were started. Start {self.degrees.ranks}, or change parallelism.dp."
            )
        self.mesh = Mesh(self.degrees)
        chain = len(self.schedule.chains[0])
        self.layers = _split(model.manifest, chain)
        holders = self._prune(model)
        share_matrices(model, self.mesh, self.mesh.dense["tensor", "data"])
        self.traffic = share_experts(model, self.mesh, latency=self.options.latency / 1000, codes=self.options.wire == "auto")
        self._share(model, holders)
        for stage in self.stages.values():
            if self.options.zero:
                shard(stage, model, self.mesh.dense["data"], reshard=False)
        return model

    def describe(self, manifest: Manifest, rank: int) -> str:
        """What a rank holds, in words."""
        layers = _split(manifest, len(self.schedule.chains[0]))
        numbers = self.schedule.stages_of(rank // self.degrees.stage)
        places = [next(chain.index(number) for chain in self.schedule.chains if number in chain) for number in numbers]
        told = [f"stage {number} ({_layers(layers[place])})" for number, place in zip(numbers, places, strict=True)]
        return f"{' and '.join(told)} of {self.schedule.name}{as_tensor_rank(rank, self.options.tp)}"

    def shares(self, manifest: Manifest) -> Sequence[Share]:
        """Which ranks have which layers."""
        return shares(manifest, self.options, self.schedule, _length(manifest))

    def step(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward and backward of one optimizer step, by the schedule's table.

        Raises:
            BestiaryError: rows that do not split, another sequence length than before, or a process that is alone.
        """
        runtime = self._prepare(model, batch)
        self._fill(model, self.own_rows(batch), model.counts(batch), observe=False)
        try:
            runtime.run()
        except Exception as error:
            error.add_note(f"on rank {world.rank()}, which has {self.describe(model.manifest, world.rank())}")
            raise
        self.sum_all(model)
        return self._report()

    @torch.no_grad()
    def evaluate(self, model: CausalLM, batch: Batch) -> Loss:
        """Forward only, in evaluation mode."""
        self._check_world()
        was_training, rows = model.training, batch.input_ids.shape[0]
        batch = batch.padded(self.row_multiple)
        model.eval()
        try:
            self._fill(model, self.own_rows(batch), model.counts(batch), observe=True)
            like = example(self._rows(batch), batch.input_ids.shape[1], _width(model), model.model.compute_dtype)
            with gathered(self.stages.values()):
                forward_only(self.schedule, self.stages, like, self.mesh, model.device)
            return self._report().of_rows(rows)
        finally:
            model.train(was_training)

    def _check_world(self) -> None:
        if not world.active():
            raise world.needs(self.degrees.ranks, self.component)

    def _prepare(self, model: CausalLM, batch: Batch) -> Runtime:
        self._check_world()
        length = batch.input_ids.shape[1]
        if self._length not in (None, length):
            raise BestiaryError(
                f"a step of sequences of {length} tokens after steps of {self._length}: stages exchange tensors of one shape. "
                f"Give sequences of {self._length} tokens, or start a run of its own."
            )
        self.own_rows(batch)
        key = (self._rows(batch), length)
        if self._runtime is None or self._runtime[0] != key:
            like, device = example(*key, _width(model), model.model.compute_dtype), model.device
            group = self.mesh.dense.get_group("pipeline")
            running = [RunningStage(stage, n, self.schedule, like, device, group) for n, stage in sorted(self.stages.items())]
            for stage in self.stages.values():
                prepare_shards(stage)
            self._runtime, self._length = (key, Runtime(self.schedule, running, overlap=self._order())), length
        return self._runtime[1]

    def _order(self) -> tuple[str, str] | None:
        overlap = self.options.overlap if isinstance(self.options, BothWaysOptions) else "forward-first"
        return {"forward-first": ("forward", "backward"), "backward-first": ("backward", "forward"), "none": None}[overlap]

    def _rows(self, batch: Batch) -> int:
        return batch.input_ids.shape[0] // self.row_multiple

    def _fill(self, model: CausalLM, rows: Batch, counts: dict[str, Tensor], *, observe: bool) -> None:
        """Gives every stage its micro-batches, with contexts that its layers share."""
        parts, share = rows.chunks(self.options.micro_batches), 1 / self.row_multiple
        each = len(parts) // len(self.schedule.chains)
        for chain, numbers in enumerate(self.schedule.chains):
            micro = [_micro_batch(part, counts, share, observe) for part in parts[chain * each : (chain + 1) * each]]
            for number in numbers:
                if number in self.stages:
                    self.stages[number].micro_batches = micro

    def _report(self) -> Loss:
        chains = [self._held(numbers) for numbers in self.schedule.chains]
        found = [micro for micros in chains for micro in micros]
        losses = [micro.loss for micro in found if micro.loss is not None]
        auxiliary = [(micro.context.parts, micro.context.aux_scale) for micro in found]
        return self.whole_loss(losses, auxiliary, [_observed(micros) for micros in chains])

    def _held(self, numbers: Iterable[int]) -> list[MicroBatch]:
        """The micro-batches of a chain, once for all of its stages on this rank."""
        return next((self.stages[n].micro_batches for n in numbers if n in self.stages), [])

    def _prune(self, model: CausalLM) -> dict[int, set[str]]:
        """Makes the stages of this rank, takes everything else out of the model; what each pipeline rank holds."""
        every = _places(model, self.layers, self.schedule.chains, self.schedule.rank_of)
        embedding = [model.model.embed_tokens] if "embedding" in every[self.mesh.pipeline] else []
        for number in self.schedule.stages_of(self.mesh.pipeline):
            chain = next(chain for chain in self.schedule.chains if number in chain)
            first, last = number == chain[0], number == chain[-1]
            late: tuple[nn.Module | None, ...] = (model.model.norm, model.lm_head, model.objectives) if last else ()
            ends: list[nn.Module] = [module for module in late if module is not None]
            if embedding and (first or last):
                ends.append(embedding.pop())
            self.stages[number] = Stage(model, self.layers[chain.index(number)], first=first, last=last, ends=ends)
        mine = every[self.mesh.pipeline]
        for index in range(len(model.model.layers)):
            if f"layer {index}" not in mine:
                model.model.layers[index] = Elsewhere()
        if "embedding" not in mine:
            model.model.embed_tokens = Elsewhere()  # type: ignore[assignment]
        if "end" not in mine:
            model.model.norm, model.objectives = Elsewhere(), nn.ModuleDict()  # type: ignore[assignment]
            model.lm_head = None
        return every

    def _share(self, model: CausalLM, holders: dict[int, set[str]]) -> None:
        """Finds what several pipeline ranks hold alike, and makes groups of them."""
        by_ranks: dict[tuple[int, ...], list[str]] = {}
        for part in sorted(set().union(*holders.values())):
            ranks = tuple(rank for rank, held in holders.items() if part in held)
            if len(ranks) > 1:
                by_ranks.setdefault(ranks, []).append(part)
        for ranks, parts in sorted(by_ranks.items()):
            group = self.mesh.across(ranks)
            if group is None:
                continue
            names = [name for name, _ in model.named_parameters() if _part_of(name) in parts]
            self.copies.append((group, names))
            self.owned |= {name: self.mesh.pipeline == ranks[0] for name in names}
            if len(self.schedule.chains) > 1:
                self.twins = group
        self.disown(model, copy=self.mesh.data > 0 and not self.options.zero)


def _layers(layers: range) -> str:
    return "no layer" if not layers else f"layer {layers.start}" if len(layers) == 1 else f"layers {layers.start} to {layers.stop - 1}"


def _split(manifest: Manifest, stages: int) -> list[range]:
    return place(manifest, entries(manifest), stages, _length(manifest))[0]


def _length(manifest: Manifest) -> int:
    return min(LENGTH, manifest.model.max_position_embeddings)


def _places(model: CausalLM, layers: list[range], chains: Any, rank_of: Any) -> dict[int, set[str]]:
    """What each pipeline rank holds: `layer 3`, `embedding`, `end`."""
    held: dict[int, set[str]] = {rank: set() for rank in set(rank_of)}
    embeds_late = model.lm_head is None or any(getattr(goal, "embeds", False) for goal in model.goals.values())
    for chain in chains:
        for position, number in enumerate(chain):
            mine = held[rank_of[number]]
            mine |= {f"layer {layer}" for layer in layers[position]}
            if position == 0 or (position == len(chain) - 1 and embeds_late):
                mine.add("embedding")
            if position == len(chain) - 1:
                mine.add("end")
    return held


def _part_of(name: str) -> str:
    """What `_places` calls the part of a parameter."""
    if name.startswith("model.layers."):
        return f"layer {name.split('.')[2]}"
    return "embedding" if name.startswith("model.embed_tokens.") else "end"


def _micro_batch(part: Batch, counts: dict[str, Tensor], share: float, observe: bool) -> MicroBatch:
    positions = torch.arange(part.input_ids.shape[1], device=part.input_ids.device)[None]
    observed: dict[str, Tensor] | None = {} if observe else None
    context = Context(positions, segments=part.segments, valid=part.valid, aux_scale=share, observed=observed)
    return MicroBatch(part, context, counts)


def _observed(micros: list[MicroBatch]) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    for micro in micros:
        for name, tensor in (micro.context.observed or {}).items():
            rows.setdefault(name, []).append(tensor)
    return {name: torch.cat(found) for name, found in rows.items()}


def _width(model: CausalLM) -> int:
    return model.manifest.model.hidden_size
