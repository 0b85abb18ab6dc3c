"""What every rank reads of a checkpoint: the half of `bestiary plan` that --of asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .console import octets, out, print_json, print_rows

if TYPE_CHECKING:
    from ..registry.load_rank import RankPlan
    from ..registry.plan import Read

SHOWN = 24
"""Rows of a table before ranks that read equally much are only counted."""


def reads(model: str, of: int, rank: int | None, layout: str, set: list[str] | None, json: bool) -> None:
    """Prints what each of `of` ranks reads of a checkpoint, or of one `rank` every tensor; arguments as of `plan`."""
    from ..registry.load_rank import plan_reference

    figures, listed, whole = [], [], 0
    for each in plan_reference(model, of=of, layout=layout, ranks=None if rank is None else [rank], set=set or []):
        figures.append(_figures(each))
        whole = each.whole
        if rank is not None:
            listed = _listed(each)
    read = sum(each["bytes_read"] for each in figures)
    if json:
        table = {"model": model, "of": of, "layout": layout, "bytes": whole, "bytes_read": read, "ranks": figures}
        print_json(table if rank is None else {**table, "reads": listed})
        return
    print_rows("", ["rank", "files", "tensors", "read", "held"], _rows(figures), right=(1, 2, 3, 4))
    if rank is not None:
        rows = [[row["file"], row["from"], row["into"], f"{row['bytes']:,}"] for row in listed]
        print_rows("", ["file", "from", "into", "bytes"], rows, right=(3,))
        return
    out.print(f"{of:,} ranks read {octets(read)}, {read / whole:.3g} times the {octets(whole)} that the model takes of its files.")
    out.print("Every element that a rank holds is read exactly once.")


def _figures(plan: RankPlan) -> dict[str, int]:
    return {"rank": plan.rank, "files": plan.files, "tensors": plan.tensors, "bytes_read": plan.nbytes, "bytes_held": plan.held}


def _listed(plan: RankPlan) -> list[dict[str, Any]]:
    return [
        {"file": read.source.file.name, "from": _source(read), "into": _place(read.target, read.region), "bytes": read.nbytes}
        for read in plan.reads
    ]


def _source(read: Read) -> str:
    """The stored tensor, with the rows and columns that are read of it."""
    shape = read.source.shape
    cuts: list[slice] = [slice(read.row, read.row + shape[0]), *(slice(0, size) for size in shape[1:])] if shape else []
    if read.columns:
        cuts[-1] = slice(*read.columns)
    return _place(read.source.name, tuple(cuts))


def _place(name: str, region: Sequence[int | slice]) -> str:
    cuts = [str(i) if isinstance(i, int) else f"{i.start or 0}:{'' if i.stop is None else i.stop}" for i in region]
    return f"{name}[{', '.join(cuts)}]" if cuts else name


def _rows(figures: Sequence[dict[str, int]]) -> list[list[str]]:
    """A row for each rank; one for neighbours that are equal, where there are many."""
    rows = [[f"{f['files']:,}", f"{f['tensors']:,}", octets(f["bytes_read"]), octets(f["bytes_held"])] for f in figures]
    if len(figures) <= SHOWN:
        return [[str(f["rank"]), *row] for f, row in zip(figures, rows, strict=True)]
    found = []
    for row, group in groupby(zip(figures, rows, strict=True), key=lambda pair: pair[1]):
        ranks = [f["rank"] for f, _ in group]
        found.append([str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}", *row])
    return found
