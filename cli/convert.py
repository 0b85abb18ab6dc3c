"""Verbs that look at and rewrite the files of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import BestiaryError
from .console import Json, err, out, print_json

Source = Annotated[str, typer.Argument(help="A folder, organisation/name[@revision], or file:path[@revision].")]


def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[str | None, typer.Option(help="bf16, fp16, fp32, or fp8 in blocks; as it is by default.", metavar="FORMAT")] = None,
    block: Annotated[str | None, typer.Option(help="Of FP8 blocks, 128,128 by default.", metavar="R,C")] = None,
    power_of_two_scales: Annotated[bool, typer.Option("--power-of-two-scales", help="With --to fp8: scales rounded up to 2^n.")] = False,
    experts: Annotated[str | None, typer.Option(help="per-expert or packed.", metavar="LAYOUT")] = None,
    names: Annotated[str, typer.Option(help="hub, or deepseek for those of DeepSeek's own code.", metavar="NAMES")] = "hub",
    max_shard_size: Annotated[str, typer.Option(help="Most bytes of a file.", metavar="SIZE")] = "4GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
    json: Json = False,
) -> None:
    """Writes a checkpoint in another number format, layout, naming or file size; goes on when it was cut off."""
    from ..registry.convert.convert import convert as run
    from ..registry.convert.options import Options

    layout: Any = experts
    naming: Any = names
    options = Options(to, _block(block), power_of_two_scales, layout, naming, max_shard_size)
    done = run(source, target, options, overwrite=overwrite, progress=not json)
    if json:
        print_json(asdict(done))
        return
    out.print(str(done), soft_wrap=True)


def verify(
    reference: Source,
    values: Annotated[bool, typer.Option("--values", help="Read every number, and name tensors with one that is not finite.")] = False,
    json: Json = False,
) -> None:
    """Checks checksums, headers, completeness, copies and scales of a checkpoint, and says everything that is wrong."""
    from ..registry.verify import verify as run

    report = run(reference, values=values, progress=not json)
    if json:
        print_json({**asdict(report), "problems": [str(problem) for problem in report.problems]})
    else:
        numbers = ", every number read" if values else ""
        out.print(f"{report.reference}: {report.tensors:,} tensors, {report.checksums} checksums agree{numbers}", soft_wrap=True)
        for problem in report.problems:
            err.print(f"[bold red]wrong:[/] {problem}", soft_wrap=True, markup=True)
        if not report.problems:
            out.print("nothing is wrong")
    if report.problems:
        raise typer.Exit(1)


def _block(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, comma, columns = text.partition(",")
    if not (comma and rows.strip().isdecimal() and columns.strip().isdecimal()):
        raise BestiaryError(f"--block {text}: give rows and columns, such as 128,128.")
    return int(rows), int(columns)
