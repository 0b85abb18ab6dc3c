"""What training will cost, without loading weights, or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .console import Json, Reference, Set, engineering, out, print_json, print_rows

if TYPE_CHECKING:
    from ..lab.cost.budget import Budget
    from ..lab.cost.estimate import Estimate, Utilisation


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
