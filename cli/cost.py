"""Verbs that say what training will cost; neither loads weights, or torch."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Json, Reference, Set, engineering, octets, out, print_json, print_rows

if TYPE_CHECKING:
    from ..lab.cost.budget import Budget
    from ..lab.cost.estimate import Estimate, Utilisation
    from ..lab.cost.memory import Plan, Rank


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
Gpu = Annotated[str, typer.Option(help="A GPU of the table, such as h800, h100, h200, a100, b200 or mi300x.")]
Gpus = Annotated[int, typer.Option(min=1, help="How many GPUs work at once.")]
SequenceLength = Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; 4096 or what the model allows.")]


def cost(
    model: Reference,
    tokens: Annotated[str | None, typer.Option(help="Of pre-training, such as 14.8T; as published, where it is.")] = None,
    gpu: Gpu = "h800",
    price: Annotated[float | None, typer.Option(help="Of a GPU hour, in dollars.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Model FLOPs over the dense bf16 peak, causal attention; 0.35 by default.")] = None,
    tokens_per_second_per_gpu: Annotated[float | None, typer.Option(help="A measured speed of pre-training, instead of --mfu.")] = None,
    gpus: Gpus = 2048,
    sequence_length: SequenceLength = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Says what training a model costs: FLOPs, GPU hours, money and days, by phase."""
    from ..lab.cost.budget import budget
    from ..lab.cost.quantity import quantity
    from ..registry.catalog import resolve

    count = None if tokens is None else quantity(tokens, of="--tokens")
    done = budget(
        resolve(model, set=set or []),
        tokens=count,
        gpu=gpu,
        price=price,
        mfu=mfu,
        tokens_per_second_per_gpu=tokens_per_second_per_gpu,
        gpus=gpus,
        sequence_length=sequence_length,
    )
    if json:
        print_json(done.table())
        return
    speed = done.parts[0]
    out.print(
        f"[bold]{done.manifest.name}[/] on {gpus:,} x {done.gpu.name}: "
        f"{speed.tokens_per_second_per_gpu:,.0f} tokens/s per GPU in pre-training, MFU {_mfu(speed.mfu)}\n",
        soft_wrap=True,
    )
    headings = ["estimate", "tokens", "length", "GFLOP\na token", "FLOPs", "GPU\nhours", "days", "cost"]
    shown = len(headings) - (price is None)
    print_rows("", headings[:shown], [row[:shown] for row in _estimates(done)], right=tuple(range(1, 8)))
    if done.run:
        headings = ["as published", "GPU\nhours", "days", "cost", "tokens/s\nper GPU", "MFU it\nmeans", "non-\ncausal", "of FP8\npeak"]
        print_rows("", headings, _published(done), right=tuple(range(1, 8)))
        out.print(f"{done.run.gpus:,} x {done.run.gpu} at ${done.run.price:g} an hour; {done.run.source}", soft_wrap=True)


def _estimates(budget: Budget) -> list[list[str]]:
    rows = []
    for phase in budget.phases:
        rows += [_estimate(phase.name, part) for part in phase.parts] or [[phase.name, "unknown", *[""] * 6]]
    without = f", without {', '.join(budget.left_out)}" if budget.left_out else ""
    return [
        *rows,
        [f"together{without}", *[""] * 4, _number(budget.hours), _number(budget.hours / budget.gpus / 24), _dollars(budget.money)],
    ]


def _estimate(name: str, part: Estimate) -> list[str]:
    figures = [_number(part.flops_per_token / 1e9), f"{part.flops:.3g}", _number(part.hours), _number(part.days), _dollars(part.money)]
    return [name, engineering(part.tokens), f"{part.sequence_length:,}", *figures]


def _published(budget: Budget) -> list[list[str]]:
    rows = [
        [
            phase.name,
            _number(phase.hours),
            _number(phase.days),
            _dollars(phase.money),
            _number(phase.tokens_per_second_per_gpu) if phase.tokens_per_second_per_gpu else "",
            *_shares(phase.mfu),
        ]
        for phase in budget.published
    ]
    assert budget.run is not None
    hours = budget.run.hours
    return [*rows, ["together", _number(hours), _number(hours / budget.run.gpus / 24), _dollars(hours * budget.run.price), *[""] * 4]]


def _shares(mfu: Utilisation | None) -> list[str]:
    """MFU as Bestiary counts it, with full attention, and against the FP8 peak."""
    shares = (mfu.causal_bf16, mfu.noncausal_bf16, mfu.causal_fp8) if mfu else (None,) * 3
    return ["" if share is None else f"{share:.3f}" for share in shares]


def _mfu(mfu: Utilisation) -> str:
    low = "" if mfu.causal_fp8 is None else f", {mfu.causal_fp8:.3f} of the FP8 peak"
    return f"{mfu.causal_bf16:.3f} (non-causal {mfu.noncausal_bf16:.3f}{low})"


def _dollars(money: float | None) -> str:
    if money is None:
        return ""
    return f"${money / 1e6:,.3f}M" if money >= 1e6 else f"${money:,.0f}" if money >= 100 else f"${money:,.2f}"


def _number(value: float) -> str:
    """Whole from 1,000 on, else three digits, or two decimals where that is more."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def plan(
    model: Reference,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs there are.")],
    layout: Annotated[
        str, typer.Option(help="Degrees of parallelism, such as pp=16,ep=64,tp=1,zero=1; dp is what remains.", metavar="KEY=N,...")
    ] = "",
    gpu: Gpu = "h800",
    schedule: Annotated[str, typer.Option(help="Of the pipeline: 1f1b, zb1p, dualpipe or dualpipe-v.")] = "1f1b",
    sequence_length: SequenceLength = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences of a micro-batch.")] = 1,
    micro_batches: Annotated[int | None, typer.Option(min=1, help="Of a step; enough to fill the pipeline by default.")] = None,
    recompute: Annotated[Recompute, typer.Option(help="What the backward pass computes again.")] = Recompute.block,
    moments: Annotated[Moments | None, typer.Option(help="Dtype of AdamW's moments; the precision's own by default.")] = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Says how much memory every rank of a layout needs, and whether it fits."""
    from ..lab.cost.memory import plan as make
    from ..registry.catalog import resolve

    done = make(
        resolve(model, set=set or []),
        gpus=gpus,
        layout=layout,
        gpu=gpu,
        schedule=schedule,
        sequence_length=sequence_length,
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        recompute=recompute.value,
        moments=None if moments is None else MOMENT_BYTES[moments],
    )
    if json:
        print_json(done.table())
        return
    out.print(f"[bold]{done.manifest.name}[/] on {gpus:,} x {done.gpu.name}: {done.request.layout}, {schedule}\n", soft_wrap=True)
    headings = ["rank", "layers", "in\nflight", "numbers", "para-\nmeters", "gradi-\nents", "optim-\nizer", "activa-\ntions", "all"]
    print_rows("", headings, [_rank(rank) for rank in done.ranks], right=tuple(range(1, 9)))
    for line in _verdict(done):
        out.print(line, soft_wrap=True)


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
