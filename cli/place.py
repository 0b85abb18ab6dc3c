"""Where experts lie: placements by measured load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Json, out, print_json, print_rows

if TYPE_CHECKING:
    from ..lab.placement import Placed


def place(
    run: Annotated[Path, typer.Argument(help="The folder of a training run, which measured the load of its experts.")],
    ranks: Annotated[int, typer.Option(min=1, help="That share the experts.")],
    nodes: Annotated[int, typer.Option(min=1, help="That these ranks are on; groups of experts stay on one where they divide.")] = 1,
    redundant: Annotated[int, typer.Option(min=0, help="Slots for copies of busy experts, on all ranks together.")] = 0,
    json: Json = False,
) -> None:
    """Places experts on ranks by the load that a run measured, as DeepSeek's EPLB does."""
    from ..lab.placement import place_run

    found = place_run(run, ranks=ranks, nodes=nodes, redundant=redundant)
    if json:
        print_json([one.table() for one in found])
        return
    print_rows("", ["layer", "in order", "placed", "experts, rank after rank"], [_row(one) for one in found], right=(0, 1, 2))
    out.print("Balancedness: work of the mean rank as a part of the busiest one's, by the held-out text of the last evaluation.")


def _row(one: Placed) -> list[str]:
    before = "none" if one.before is None else f"{one.before:.1%}"
    ranks = " ".join(f"[{','.join(map(str, held))}]" for held in one.placement.by_rank)
    return [str(one.layer), before, f"{one.after:.1%}", ranks]
