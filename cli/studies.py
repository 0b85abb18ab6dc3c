"""Verbs that train: one model, or variants of one that are compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .console import out, print_rows

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A change of the recipe, like train.steps=200; of its model under set., like set.block.attention.use=gqa.",
        metavar="PATH=VALUE",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results; the one that the file names by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in the folder.")]


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML).")],
    set: Changes = None,
    out_folder: Out = None,
    overwrite: Overwrite = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the run's curves into its folder.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, as many as set.parallelism is for.")] = 1,
    max_restarts: Annotated[int, typer.Option(min=0, help="How often all processes start again after one failed.")] = 0,
) -> None:
    """Trains a model by a recipe. Ctrl-C saves it and stops; the same command again goes on, also after a crash."""
    from ..core.distributed import world
    from ..lab.recipe import load_recipe
    from ..lab.training.plot import plot_run
    from ..lab.training.train import train as run

    asked = load_recipe(recipe, set=set or [])
    if nproc > 1 and not world.launched():
        from ..lab.training.launch import launch

        launch(asked, sys.argv[1:], processes=nproc, max_restarts=max_restarts)
        return
    overwrite = overwrite and not world.restarted()
    done = run(asked, out=out_folder, resume=not overwrite, overwrite=overwrite)
    if not world.first():
        return
    summary = done.summary
    held_out = "" if summary.bits_per_byte is None else f", {summary.bits_per_byte:.3f} bits per byte on held-out text"
    out.print(f"{summary.status}: {summary.tokens:,} tokens, {summary.tokens_per_second:,.0f} tokens/s{held_out}")
    out.print(
        f"MFU {summary.mfu:.1%} of {summary.peak_flops / 1e9:,.0f} GFLOP/s measured ({summary.mfu_noncausal:.1%} counted non-causally)"
    )
    if summary.skipped:
        out.print(f"[yellow]skipped:[/] {len(summary.skipped)} steps were not finite; their batches are in {done.folder / 'non-finite'}")
    if plot:
        out.print(f"curves: {plot_run(done)}", soft_wrap=True)
    out.print(f"model, metrics and summary: {done.folder}", soft_wrap=True)


def ablate(
    study: Annotated[Path, typer.Argument(help="A study (TOML).")],
    set: Changes = None,
    out_folder: Out = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once, which share the cores; 1, or as many as fit on Ray.")] = None,
    engine: Annotated[str, typer.Option(help="Where runs are carried out: local or ray.")] = "local",
) -> None:
    """Trains the variants of a study on the same data and writes a report that compares them."""
    from ..lab.studies.ablate import ablate as run
    from ..lab.studies.engines import open_engine
    from ..lab.studies.study import load_study
    from ..lab.studies.tables import brief

    done = run(load_study(study, set=set or []), out=out_folder, engine=open_engine(engine, jobs=jobs))
    table = brief(done.runs, done.study.baseline)
    print_rows("", list(table.header), [list(row) for row in table.rows], right=tuple(range(1, len(table.header) - 1)))
    out.print(f"report: {done.report}", soft_wrap=True)
