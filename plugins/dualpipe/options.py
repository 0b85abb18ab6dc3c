"""Options of the pipelines, and what can be said about them before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...core.component import Options
from ...core.errors import BestiaryError
from ...core.layout import Layout, divisors, expert_misfits, tensor_misfits
from .schedules.catalog import SCHEDULES, make

if TYPE_CHECKING:
    from ...core.manifest import Manifest
    from .pipeline import Pipeline
    from .schedules.actions import Schedule


class PipelineRanks(Options):
    """How many ranks do what, in every pipeline."""

    pp: int = Field(default=2, gt=0)
    """Pipeline ranks."""
    dp: int = Field(default=1, gt=0)
    """Data-parallel ranks: copies of the pipeline, which share the rows of a step."""
    tp: int = Field(default=1, gt=0)
    """Tensor-parallel ranks: they share the heads of attention, the width of dense layers, and the rows of a data rank; divides heads,
    key-value heads and intermediate sizes. Embedding and head stay whole."""
    ep: int = Field(default=1, gt=0)
    """Of the `dp * tp` ranks of a stage, how many share its routed experts; divides `dp * tp` and the number of experts."""
    micro_batches: int = Field(default=4, gt=0)
    """Micro-batches of a step on each data rank."""
    zero: Literal[0, 3] = 0
    """What data ranks share: 0 nothing, gradients are summed at the end of a step; 3 parameters, gradients and optimizer states by
    FSDP2, except routed experts where `ep` spreads them. Stages stay whole during a step."""
    latency: float = Field(default=0.0, ge=0)
    """Milliseconds added to every exchange between experts, to see on any machine what overlap hides."""
    wire: Literal["auto", "plain"] = "auto"
    """How rows travel between experts: `auto` sends FP8 codes, half the bytes, where `precision` computes with the same codes anyway, so
    that results do not change; `plain` sends numbers as they are."""

    @property
    def layout(self) -> Layout:
        """What `bestiary plan` counts."""
        return Layout(pp=self.pp, tp=self.tp, dp=self.dp, ep=self.ep, zero=self.zero)


class BothWaysOptions(PipelineRanks):
    """Of DualPipe and DualPipeV."""

    overlap: Literal["forward-first", "backward-first", "none"] = "forward-first"
    """Whose piece begins when a forward and a backward pass overlap: in turns, each computes during the exchanges of the other. `none`
    runs one after the other."""


class PipelineOptions(PipelineRanks):
    """Of pipelines in which every layer is once, and data flows one way."""

    schedule: Literal["1f1b", "interleaved", "interleaved-overlap", "zb1p", "zb-v"] = "1f1b"
    """`1f1b`; `interleaved`, with `chunks` stages on each rank; `interleaved-overlap`, whose steady pairs run in turns; `zb1p` and `zb-v`,
    which fill bubbles with weight gradients."""
    chunks: int = Field(default=2, gt=1)
    """Stages on a rank, of the interleaved schedules."""


def schedule(name: str, options: PipelineRanks) -> Schedule:
    """The table that these options ask for.

    Raises:
        BestiaryError: numbers that do not fit the schedule.
    """
    return make(name, ranks=options.pp, microbatches=options.micro_batches, chunks=getattr(options, "chunks", 2))


def name_of(options: PipelineRanks, component: str) -> str:
    """The schedule of a component's options."""
    return options.schedule if isinstance(options, PipelineOptions) else component


def _check(component: str, options: PipelineRanks) -> Iterator[str]:
    ranks = options.dp * options.tp
    if ranks % options.ep:
        yield f"ep = {options.ep} does not divide dp * tp = {ranks}. Use one of {divisors(ranks)}."
    try:
        schedule(name_of(options, component), options)
    except BestiaryError as error:
        yield str(error)


def check_dualpipe(options: BothWaysOptions, site: Any) -> Iterator[str]:
    """What does not fit."""
    yield from _check("dualpipe", options)


def check_dualpipe_v(options: BothWaysOptions, site: Any) -> Iterator[str]:
    """What does not fit."""
    yield from _check("dualpipe-v", options)


def check_pipeline(options: PipelineOptions, site: Any) -> Iterator[str]:
    """What does not fit."""
    yield from _check("pipeline", options)


def misfits(options: PipelineRanks, manifest: Manifest) -> Iterator[str]:
    """What keeps a model from lying on these ranks."""
    yield from tensor_misfits(manifest, options.tp)
    yield from expert_misfits(manifest, options.dp * options.tp, options.ep)
    yield from _stage_misfits(options, manifest)


def _stage_misfits(options: PipelineRanks, manifest: Manifest) -> Iterator[str]:
    kind, chunks = SCHEDULES[name_of(options, manifest.parallelism.use)], getattr(options, "chunks", 2)
    layers, stages = manifest.model.num_hidden_layers, kind.stages(options.pp, chunks)
    if stages > layers + 1:
        step = 2 if kind.even_ranks else 1
        most = next((pp for pp in range(options.pp - step, 0, -step) if kind.stages(pp, chunks) <= layers + 1), None)
        remedy = f"Use pp = {most} at most" if most else "Take another schedule"
        fact = f"pp = {options.pp} makes {stages} stages, and {layers} layers with the head make {layers + 1} at most."
        yield f"{fact} {remedy}, or more layers."


def build_dualpipe(options: BothWaysOptions, site: Any) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline(options, "dualpipe")


def build_dualpipe_v(options: BothWaysOptions, site: Any) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline(options, "dualpipe-v")


def build_pipeline(options: PipelineOptions, site: Any) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline(options, "pipeline")
