"""Who holds what: the memory of every rank in training, or what every rank reads of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import BestiaryError, Problem
from .console import Json, Reference, Set, engineering, octets, out, print_json, print_rows
from .cost import Gpu, SequenceLength
from .plan_reads import reads

if TYPE_CHECKING:
    from ..core.layout import Layout
    from ..core.manifest import Manifest
    from ..lab.cost.memory import Plan, Rank
    from ..plugins.dualpipe.predict import Prediction


class Recompute(StrEnum):
    """What the backward pass computes again."""

    block = "block"
    none = "none"


class Moments(StrEnum):
    """Dtype of AdamW's moments."""

    bf16 = "bf16"
    fp32 = "fp32"


MOMENT_BYTES = {Moments.bf16: 4, Moments.fp32: 8}
"""Of both moments of a parameter."""
MEMORY_ONLY = ("gpu", "schedule", "sequence_length", "micro_batch", "micro_batches", "recompute", "moments", "mfu", "overlap")
READS_ONLY = ("rank",)


def plan(
    context: typer.Context,
    model: Reference,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs train: the memory of every rank.")] = None,
    of: Annotated[int | None, typer.Option("--of", min=1, help="How many ranks load: what each reads of a checkpoint.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="With --of: one rank, with every tensor that it reads.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="Degrees of parallelism, such as pp=16,ep=64,tp=1,zero=1; dp is what remains. By default those of the manifest's "
            "[parallelism]. With --of alone every rank holds an equal part of every parameter.",
            metavar="KEY=N,...",
        ),
    ] = "",
    gpu: Gpu = "h800",
    schedule: Annotated[
        str | None, typer.Option(help="Of the pipeline: 1f1b, zb1p, dualpipe or dualpipe-v; by default [parallelism]'s, or 1f1b.")
    ] = None,
    sequence_length: SequenceLength = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences of a micro-batch.")] = 1,
    micro_batches: Annotated[int | None, typer.Option(min=1, help="Of a step; enough to fill the pipeline by default.")] = None,
    recompute: Annotated[Recompute, typer.Option(help="What the backward pass computes again.")] = Recompute.block,
    moments: Annotated[Moments | None, typer.Option(help="Dtype of AdamW's moments; the precision's own by default.")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Part of the bf16 peak that a GPU reaches while it computes.")] = 0.5,
    overlap: Annotated[float, typer.Option(min=0.01, help="An overlapped pair, as a part of its passes: F&B / (F + B).")] = 0.8,
    set: Set = None,
    json: Json = False,
) -> None:
    """Says how much memory every rank of a layout needs (--gpus), or what every rank reads of a checkpoint (--of)."""
    if (gpus is None) == (of is None):
        raise BestiaryError("Say either --gpus N, for the memory of training on N GPUs, or --of N, for what N ranks read of a checkpoint.")
    _check_options(context, reads=of is not None)
    if of is not None:
        reads(model, of, rank, layout, set, json)
        return
    assert gpus is not None
    from ..lab.cost.memory import plan as make
    from ..registry.catalog import resolve

    manifest = resolve(model, set=set or [])
    asked = _asked(manifest, gpus, layout, schedule, micro_batches)
    done = make(
        manifest,
        gpus=gpus,
        layout=asked.layout,
        gpu=gpu,
        schedule=asked.schedule,
        sequence_length=sequence_length,
        micro_batch=micro_batch,
        micro_batches=asked.micro_batches,
        recompute=recompute.value,
        moments=None if moments is None else MOMENT_BYTES[moments],
    )
    step = _predicted(done, mfu, overlap)
    if json:
        print_json(done.table() | {"step": vars(step) | {"hours_per_trillion": step.hours_per_trillion}})
        return
    _print_plan(done, [*_verdict(done), *_told(step, mfu, overlap), *_published(done)])


def _print_plan(done: Plan, told: list[str]) -> None:
    """A row for each pipeline rank, and what is said below."""
    request = done.request
    gpus = f"{request.layout.gpus:,} x {done.gpu.name}"
    out.print(f"[bold]{done.manifest.name}[/] on {gpus}: {request.layout}, {request.schedule.name}\n", soft_wrap=True)
    headings = ["rank", "layers", "in\nflight", "numbers", "para-\nmeters", "gradi-\nents", "optim-\nizer", "activa-\ntions", "all"]
    print_rows("", headings, [_rank(rank) for rank in done.ranks], right=tuple(range(1, 9)))
    for line in told:
        out.print(line, soft_wrap=True)


@dataclass(frozen=True)
class Asked:
    """What is to be planned."""

    layout: str | Layout
    schedule: str
    micro_batches: int | None


def _asked(manifest: Manifest, gpus: int, layout: str, schedule: str | None, micro_batches: int | None) -> Asked:
    """The command line's wishes, and where it has none, those of the manifest's [parallelism], unless that is one process.

    Raises:
        BestiaryError: [parallelism] is for another number of GPUs.
    """
    part = manifest.parallelism
    own: Layout | None = getattr(part.options, "layout", None)
    if layout or own is None:
        return Asked(layout, schedule or "1f1b", micro_batches)
    if own.gpus != gpus:
        fact = f"pp * tp * dp = {own.pp} * {own.tp} * {own.dp} makes {own.gpus} GPUs, and --gpus says {gpus}."
        stage = own.pp * own.tp
        remedy = (
            f"Set parallelism.dp={gpus // stage}."
            if gpus % stage == 0
            else f"The nearest that fits: --gpus {max(gpus // stage, 1) * stage}."
        )
        raise BestiaryError(Problem(fact, "parallelism", remedy))
    named = getattr(part.options, "schedule", part.use if own.pp > 1 else "1f1b")
    return Asked(own, schedule or named, micro_batches or getattr(part.options, "micro_batches", None))


def _predicted(plan: Plan, mfu: float, overlap: float) -> Prediction:
    """A step of the plan's layout."""
    from ..plugins.dualpipe.predict import predict
    from ..plugins.dualpipe.schedules.catalog import SCHEDULES

    request, pp = plan.request, plan.request.layout.pp
    count = request.micro_batches or max(4 * pp, SCHEDULES[request.schedule.name].least(pp))
    return predict(
        plan.manifest,
        layout=request.layout,
        schedule=request.schedule.name,
        micro_batches=count,
        length=request.sequence_length,
        micro_batch=request.micro_batch,
        rate=plan.gpu.bf16 * mfu,
        overlap=overlap,
        recompute=request.recompute == "block",
    )


def _published(plan: Plan) -> list[str]:
    """What the model's own run took, where it is known."""
    from ..lab.cost.runs import published_runs

    run = published_runs().get(plan.manifest.name)
    first = run.phases[0] if run else None
    if run is None or first is None or first.hours is None:
        return []
    rate = 1e12 * first.hours / first.tokens
    return [f"published for its {first.name}: {engineering(rate)} GPU hours per trillion tokens on {run.gpus:,} x {run.gpu}"]


def _told(step: Prediction, mfu: float, overlap: float) -> list[str]:
    tensors = f"{octets(step.tensor_bytes)} between tensor ranks, " if step.tensor_bytes else ""
    hidden = f", a pair takes {overlap:g} of its passes" if overlap != 1 else ""
    return [
        f"a step of {engineering(step.tokens)} tokens: {step.seconds:.1f} s at {mfu:.0%} of the bf16 peak while computing{hidden}; bubble "
        f"{step.bubble:.1%}, {step.tokens_per_second:,.0f} tokens/s per GPU, "
        f"{engineering(step.hours_per_trillion)} GPU hours per trillion tokens",
        *_reached(step),
        f"a GPU sends in a step: {octets(step.expert_bytes)} between experts, {tensors}{octets(step.stage_bytes)} between stages, "
        f"{octets(step.data_bytes)} between data ranks",
    ]


def _reached(step: Prediction) -> list[str]:
    if step.reach <= 1:
        return []
    from ..plugins.dualpipe.predict import NODE

    nodes = "" if step.nodes is None else f", on {step.nodes:.1f} nodes of {NODE} GPUs"
    return [f"a token travels to {step.reach:.1f} ranks{nodes}, all choices of experts being equally likely"]


def _check_options(context: typer.Context, *, reads: bool) -> None:
    """Refuses options that the other kind of plan has.

    Raises:
        BestiaryError: names them.
    """
    others = MEMORY_ONLY if reads else READS_ONLY
    given = [name for name in others if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        told, other = ("--of", "--gpus") if reads else ("--gpus", "--of")
        raise BestiaryError(f"{names} says nothing with {told}: it belongs to {other}. Leave it out.")


def _rank(rank: Rank) -> list[str]:
    m = rank.memory
    layers = ["none" if not stage else f"{stage[0]}-{stage[-1]}" if len(stage) > 1 else str(stage[0]) for stage in rank.stages]
    flights = "+".join(map(str, rank.in_flight))
    return [
        str(rank.rank),
        ", ".join(layers),
        flights,
        engineering(rank.parameters),
        *map(octets, (m.weights, m.gradients, m.optimizer)),
        octets(m.activations),
        octets(m.total),
    ]


def _verdict(plan: Plan) -> list[str]:
    worst, limit, request = plan.worst, plan.gpu.memory, plan.request
    fits = "[green]fits[/]" if plan.fits else "[red]does not fit[/]"
    free = (
        f"{octets(limit - worst.memory.total)} are left for buffers and fragments" if plan.fits else "Raise pp or ep, or share more (zero)"
    )
    other = "nothing" if request.recompute == "block" else "blocks"
    return [
        f"{fits}: the most is {octets(worst.memory.total)} of {octets(limit)}, on pipeline rank {worst.rank}. {free}.",
        f"sequences of {request.sequence_length:,}, {request.micro_batch} a micro-batch, "
        f"{'blocks' if request.recompute == 'block' else 'nothing'} recomputed; with {other} recomputed: {octets(plan.otherwise)}",
    ]
