"""What a pipeline schedule takes, in time and memory, without any process; and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, Set, out, print_json, print_rows

if TYPE_CHECKING:
    from ..plugins.dualpipe.schedules.simulate import Simulation, Times


def simulate(
    schedule: Annotated[str, typer.Argument(help="A schedule, such as dualpipe-v; all are compared when left out.")] = "",
    ranks: Annotated[int, typer.Option(min=1, help="Of the pipeline.")] = 8,
    microbatches: Annotated[int, typer.Option(min=1, help="Of a step.")] = 20,
    chunks: Annotated[int, typer.Option(min=2, help="Stages of a rank, of the interleaved schedules.")] = 2,
    forward: Annotated[float, typer.Option(min=0, help="Time of a forward pass through 1 / (2 * ranks) of the model.")] = 1.0,
    backward: Annotated[float, typer.Option(min=0, help="Of the gradients of inputs.")] = 1.0,
    weight: Annotated[float, typer.Option(min=0, help="Of the gradients of weights.")] = 1.0,
    overlap: Annotated[float, typer.Option(min=0.01, help="An overlapped pair, as a part of its passes one by one: F&B / (F + B).")] = 0.8,
    latency: Annotated[float, typer.Option(min=0, help="From one rank to the next.")] = 0.0,
    model: Annotated[str, typer.Option(help="Takes times from the FLOPs of this model's stages instead, in milliseconds.")] = "",
    gpu: Annotated[str, typer.Option(help="Of --model: what computes it.")] = "h800",
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Of --model: the part of its bf16 peak that it reaches.")] = 0.35,
    tokens: Annotated[int, typer.Option(min=1, help="Of --model: tokens of a micro-batch, one sequence.")] = 4096,
    image: Annotated[Path | None, typer.Option("--out", "-o", help="A Gantt chart of the schedule, .svg or .png.")] = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Simulates a pipeline schedule and draws it, or compares all of them for one model on as many ranks."""
    from ..core.errors import BestiaryError
    from ..plugins.dualpipe.schedules.catalog import SCHEDULES, make

    unit = "ms" if model else ""
    times = _Timing(ranks, chunks, (forward, backward, weight), overlap, latency, (model, gpu, mfu, tokens, set or []))
    if schedule:
        run = times.run(make(schedule, ranks=ranks, microbatches=microbatches, chunks=chunks))
        if image is not None:
            from ..plugins.dualpipe.gantt import draw

            draw(run, image, unit=unit)
        rows = [run]
    elif image is not None:
        raise BestiaryError("A chart is of one schedule: name it, such as `bestiary simulate dualpipe-v --out chart.svg`.")
    else:
        rows, left_out = [], []
        for name in SCHEDULES:
            try:
                rows.append(times.run(make(name, ranks=ranks, microbatches=microbatches, chunks=chunks)))
            except BestiaryError as error:
                left_out.append(str(error))
    if json:
        print_json([_figures(run) for run in rows])
        return
    time = f"makespan{f', {unit}' if unit else ''}"
    headings = ["schedule", "stages", time, "bubble", "worst\nidle", "in\nflight", "copies", "over-\nlapped"]
    print_rows("", headings, [_row(run) for run in rows], right=tuple(range(1, 8)))
    if schedule:
        if image is not None:
            out.print(f"chart: {image}", soft_wrap=True)
        return
    for problem in left_out:
        out.print(f"left out: {problem}", soft_wrap=True)
    _verdict(times, ranks, microbatches)


class _Timing:
    """Times of every schedule's stages for one and the same model."""

    def __init__(
        self, ranks: int, chunks: int, passes: tuple[float, float, float], overlap: float, latency: float, asked: tuple[Any, ...]
    ) -> None:
        self.ranks, self.passes, self.overlap, self.latency, self.asked = ranks, passes, overlap, latency, asked

    def run(self, table: Any) -> Simulation:
        """The schedule in time."""
        from ..plugins.dualpipe.schedules.simulate import simulate as carry_out

        return carry_out(table, self.of(table))

    def of(self, table: Any) -> Times:
        """The times of its stages."""
        from ..plugins.dualpipe.schedules.simulate import Times

        if not self.asked[0]:
            scale = 2 * self.ranks / len(table.chains[0])
            return Times(*(time * scale for time in self.passes), overlap=self.overlap, latency=self.latency)
        each = self._counted(len(table.chains[0]))
        by_stage = [each[next(chain.index(s) for chain in table.chains if s in chain)] for s in range(len(table.rank_of))]
        f, i, w = (tuple(column) for column in zip(*by_stage, strict=True))
        return Times(f, i, w, overlap=self.overlap, latency=self.latency)

    def _counted(self, stages: int) -> list[tuple[float, float, float]]:
        """Milliseconds of each stage's passes."""
        from ..core.stages import stage_work
        from ..lab.cost.gpus import find_gpu
        from ..registry.catalog import resolve

        model, gpu, mfu, tokens, set = self.asked
        rate = find_gpu(gpu).bf16 * mfu / 1000
        return [tuple(flops * tokens / rate for flops in work) for work in stage_work(resolve(model, set=set), stages, tokens)]  # type: ignore[misc]


def _figures(run: Simulation) -> dict[str, Any]:
    schedule = run.schedule
    return {
        "schedule": schedule.name,
        "ranks": schedule.ranks,
        "microbatches": schedule.microbatches,
        "stages": len(schedule.chains[0]),
        "makespan": run.makespan,
        "bubble": run.bubble,
        "wall_idle": list(run.wall_idle),
        "span_idle": list(run.span_idle),
        "in_flight": [peak * schedule.ranks / len(schedule.chains[0]) for peak in run.peaks],
        "waiting_weights": list(run.waiting_weights),
        "copies": len(schedule.chains),
        "overlapped": run.overlapped,
    }


def _row(run: Simulation) -> list[str]:
    figures = _figures(run)
    return [
        figures["schedule"],
        str(figures["stages"]),
        f"{run.makespan:,.1f}",
        f"{run.bubble:.1%}",
        f"{max(run.wall_idle):,.1f}",
        f"{max(figures['in_flight']):.3g}",
        str(figures["copies"]),
        f"{run.overlapped:.0%}",
    ]


def _verdict(times: _Timing, ranks: int, microbatches: int) -> None:
    from ..core.errors import BestiaryError
    from ..plugins.dualpipe.schedules.catalog import make
    from ..plugins.dualpipe.schedules.simulate import break_even

    out.print("in flight: activations of micro-batches on the worst rank, in shares of 1 / ranks of the model; copies: of the parameters")
    try:
        made = make("dualpipe-v", ranks=ranks, microbatches=microbatches)
        least = break_even(ranks, microbatches, times.of(made))
    except BestiaryError:
        return
    out.print(f"dualpipe-v is faster than zb-v where a pair takes less than {least:.3f} of its two passes; here {times.overlap:g}.")
