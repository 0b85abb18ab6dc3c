"""What all verbs share: their common options, tables, numbers in words, and errors."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..core.errors import BestiaryError

MANY = 7
"""A table with more columns stands closer."""
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Reference = Annotated[str, typer.Argument(help="A catalog name, a path, or a Hub id (organisation/name[@revision]).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A change on top, like block.attention.use=gqa; repeat for more.", metavar="PATH=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def report_error(error: BestiaryError) -> None:
    """One line a problem, on standard error."""
    for problem in error.problems:
        err.print(f"[bold red]error:[/] {_escape(str(problem))}", soft_wrap=True)


def report_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """What Bestiary warns of, as one line on standard error; warnings of libraries are for their developers."""
    if category is UserWarning:
        err.print(f"[bold yellow]warning:[/] {_escape(str(message))}", soft_wrap=True)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, default=str))


def print_rows(title: str, headings: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> None:
    """A table; columns in `right` are set flush right and never broken, their headings only where they say so."""
    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0) if len(headings) > MANY else (0, 1)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold", no_wrap=index in right)
    for row in rows:
        table.add_row(*(_escape(cell) for cell in row))
    out.print(table)


def engineering(value: float) -> str:
    """`671026419200` as `671.0 B`."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value:.4g}"


def flops(value: float) -> str:
    """`250455926784.0` as `250.46 GFLOP`."""
    return f"{value / 1e9:,.2f} GFLOP" if value >= 1e8 else f"{value / 1e6:,.2f} MFLOP"


def octets(value: float) -> str:
    """Bytes in decimal units."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value:.0f} B"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
