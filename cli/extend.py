"""The verb that takes a trained model to longer contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import out, print_rows


def extend(
    file: Annotated[Path, typer.Argument(help="An extension (TOML): the model to start from, YaRN, and phases.")],
    set: Annotated[
        list[str] | None, typer.Option("--set", help="A change of the file, like needle.count=4; repeat for more.", metavar="PATH=VALUE")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results; the one that the file names by default.")
    ] = None,
) -> None:
    """Takes a trained model to longer contexts, in phases, and reports loss by position and needles in haystacks."""
    from ..lab.extension.extend import extend as run
    from ..lab.extension.extension import load_extension
    from ..lab.extension.report import overview

    done = run(load_extension(file, out=out_folder, set=set or []))
    table = overview(done.probes)
    print_rows("", list(table.header), [list(row) for row in table.rows], right=tuple(range(1, len(table.header))))
    out.print(f"report: {done.report}", soft_wrap=True)
    out.print(f"model: {done.model}", soft_wrap=True)
