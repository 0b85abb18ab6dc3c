"""`bestiary train`: a recipe in, a folder with model, metrics and summary out; a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from ...core.adjust import check_adjustable
from ...core.contracts import Parallelism
from ...core.distributed import world
from ...core.errors import BestiaryError
from ...core.host import keep_freed_memory
from ...core.manifest import Manifest
from ..checked import table
from ..data.dataset import open_data
from ..options import Recipe
from ..progress import console
from ..recipe import load_recipe
from .device import choose
from .display import Display, show_shares
from .interrupt import Interrupt
from .result import RunResult
from .run import Run
from .trackers import check_installed


def train(
    recipe: Recipe | str | Path,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    resume: bool = True,
    overwrite: bool = False,
) -> RunResult:
    """Trains one model and saves it.

    The folder receives `model/` (for `bestiary.load`), `metrics.jsonl`, `summary.json`, `checkpoints/`, and `recipe.json` and
    `manifest.json`, from which the run can be repeated. Ctrl-C ends the run after its step and saves it the same way.

    Args:
        recipe: the recipe, or the path of one.
        out: the folder; the recipe's own `out` by default.
        progress: whether to show progress on stderr.
        resume: whether a run of the same recipe, model and data that is in the folder unfinished goes on from its last checkpoint,
            with the losses that it would have had.
        overwrite: whether any other run that is in the folder may be replaced.

    Raises:
        Diverged: loss or gradients became infinite or NaN; metrics, summary and the batch are kept, there is no model.
        BestiaryError: recipe, data and model do not fit, the folder holds another run (nothing is written then), or the disk is full.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(out) if out is not None else Path(recipe.out)
    check_installed(recipe.log.to)
    keep_freed_memory()
    manifest, device = recipe.manifest(), choose(recipe.train.device)
    _check_timeline(recipe, manifest)
    progress = progress and world.first()
    with world.joined(device, recipe.train.timeout):
        return _train(recipe, manifest, device, folder, progress=progress, resume=resume, overwrite=overwrite)


def _train(
    recipe: Recipe, manifest: Manifest, device: torch.device, folder: Path, *, progress: bool, resume: bool, overwrite: bool
) -> RunResult:
    parallelism = _fitting(manifest)
    data = open_data(recipe, manifest)
    if data.left_out and progress:
        console.print(f"{len(data.left_out)} files are not UTF-8 text and are left out, such as {data.left_out[0]}", soft_wrap=True)
    run = Run(recipe, manifest, data, device, folder, digest=run_digest(recipe, manifest, data.digest))
    if progress:
        show_shares(parallelism.shares(manifest))
    step = run.prepare(resume=resume, overwrite=overwrite)
    if step and progress:
        console.print(f"{folder}: goes on after step {step} of {recipe.steps}", soft_wrap=True, highlight=False)
    if progress and (here := manifest.precision.here()):
        console.print(f"precision {manifest.precision.use} here: {here}", soft_wrap=True, highlight=False)
    with Interrupt() as interrupt, Display(folder.name, recipe.steps, shown=progress) as display:
        run.go(interrupt, display)
    return run.finish()


def _fitting(manifest: Manifest) -> Parallelism:
    parallelism: Parallelism = manifest.parallelism.build(manifest.site)
    needed = parallelism.processes
    if world.size() != needed:
        use = manifest.parallelism.use
        remedy = f"Start it with `bestiary train RECIPE --nproc {needed}`, or set set.parallelism.use = 'local'."
        raise BestiaryError(f"parallelism.use = '{use}' needs {needed} processes, and there are {world.size()}. {remedy}")
    return parallelism


def run_digest(recipe: Recipe, manifest: Manifest, data_digest: str) -> str:
    """sha256 of everything that decides a run's result; paths, checkpoints and trackers are not among it."""
    own = table(recipe)
    for name in ("model", "set", "out", "data", "checkpoint"):
        del own[name]
    for name in ("to", "project"):
        del own["log"][name]
    del own["train"]["timeout"]
    parts = json.dumps([own, manifest.digest, data_digest], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


def _check_timeline(recipe: Recipe, manifest: Manifest) -> None:
    problems = [problem for path in recipe.timeline if (problem := check_adjustable(manifest, path))]
    if problems:
        raise BestiaryError(*problems)
