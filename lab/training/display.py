"""The progress bar of a training run: loss, held-out bits per byte, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...core.contracts import Share
from ..progress import console
from ..units import short
from .metrics import Line


def show_shares(shares: Sequence[Share]) -> None:
    """A table of what lies where, before a run begins."""
    if not shares:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("ranks", "stages", "layers", "parameters", "FLOPs"):
        table.add_column(heading, justify="right" if heading in ("parameters", "FLOPs") else "left")
    for share in shares:
        layers = ", ".join(_range(layers) for layers in share.layers)
        table.add_row(_range(share.ranks), ", ".join(map(str, share.stages)), layers, short(share.parameters), f"{share.flops:.1%}")
    console.print(table)


def _range(numbers: range) -> str:
    return "none" if not numbers else str(numbers.start) if len(numbers) == 1 else f"{numbers.start}-{numbers.stop - 1}"


class Display:
    """Shows a run on a terminal; on anything else prints one line for each evaluation."""

    def __init__(self, label: str, steps: int, *, shown: bool) -> None:
        self.label, self.steps, self.shown = label, steps, shown
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self.task = self.bar.add_task(label, total=steps, figures="")
        self.loss = self.held_out = ""
        self.speed = 0.0

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, line: Line) -> None:
        if line.kind == "eval":
            self.held_out = f"  held-out {line.bits_per_byte:.3f} bits/byte"
            self._print(line)
        elif line.kind == "skip":
            console.print(f"{self.label}: {line.message} The step is skipped.", soft_wrap=True, highlight=False)
        else:
            speed = line.tokens_per_second or 0.0
            self.speed = 0.9 * self.speed + 0.1 * speed if self.speed else speed
            self.loss = f"loss {line.loss:.3f}"
        self.bar.update(self.task, completed=line.step, figures=f"{self.loss}{self.held_out}  {self.speed:,.0f} tokens/s")

    def _print(self, line: Line) -> None:
        if self.shown and not console.is_terminal:
            speed = f", {self.speed:,.0f} tokens/s" if self.speed else ""
            console.print(f"{self.label}: step {line.step}/{self.steps}{self.held_out}{speed}", highlight=False)
