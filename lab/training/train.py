"""`bestiary train`: a recipe in, a folder with model, metrics and summary out."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path

import torch

from ...core.errors import BestiaryError
from ...core.host import keep_freed_memory
from ...core.manifest import Manifest
from ...registry.save import save
from ..amount import steps_of
from ..checked import table
from ..data.dataset import Data, open_data
from ..options import Recipe
from ..progress import console
from ..recipe import load_recipe
from .device import choose
from .display import Display
from .interrupt import Interrupt
from .memory import peak_memory
from .metrics import Line, Log
from .result import METRICS, MODEL, RECIPE, SUMMARY, RunResult, Status, Summary, write_json, write_summary
from .trainer import Diverged, Trainer


def train(recipe: Recipe | str | Path, *, out: str | Path | None = None, progress: bool = True, overwrite: bool = False) -> RunResult:
    """Trains one model and saves it.

    The folder receives `model/` (for `bestiary.load`), `metrics.jsonl`, `summary.json`, and `recipe.json` and `manifest.json`,
    from which the run can be repeated. Ctrl-C ends the run after its step and saves it the same way.

    Args:
        recipe: the recipe, or the path of one.
        out: the folder; the recipe's own `out` by default.
        progress: whether to show progress on stderr.
        overwrite: whether a run that is in the folder may be replaced.

    Raises:
        Diverged: loss or gradients became infinite or NaN; metrics and summary are kept, there is no model.
        BestiaryError: recipe, data and model do not fit, or the folder holds another run; nothing is written.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(out) if out is not None else Path(recipe.out)
    _check_free(folder, overwrite)
    keep_freed_memory()
    manifest, device = recipe.manifest(), choose(recipe.train.device)
    data = open_data(recipe, manifest)
    if data.left_out and progress:
        console.print(f"{len(data.left_out)} files are not UTF-8 text and are left out, such as {data.left_out[0]}", soft_wrap=True)
    run = _Run(recipe, manifest, data, device, folder)
    with Interrupt() as interrupt, Display(folder.name, recipe.steps, shown=progress) as display:
        run.go(interrupt, display)
    return run.finish()


def run_digest(recipe: Recipe, manifest: Manifest, data_digest: str) -> str:
    """sha256 of everything that decides a run's result; paths and the output folder are not among it."""
    own = table(recipe)
    for name in ("model", "set", "out", "data"):
        del own[name]
    parts = json.dumps([own, manifest.digest, data_digest], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class _Run:
    """A trainer and the folder that it reports to."""

    def __init__(self, recipe: Recipe, manifest: Manifest, data: Data, device: torch.device, folder: Path) -> None:
        self.recipe, self.manifest, self.data, self.device, self.folder = recipe, manifest, data, device, folder
        self.trainer = Trainer(recipe, manifest, data, device)
        self.held_out = self.trainer.evaluate()
        _clear(folder)
        write_json(folder / RECIPE, table(recipe))
        write_json(folder / "manifest.json", manifest.table())
        self.log = Log(folder)

    def go(self, interrupt: Interrupt, display: Display) -> None:
        """Steps and evaluations until the budget is used up, someone interrupts, or the run diverges."""
        steps, every = self.recipe.steps, self._eval_every()
        self._write(self.held_out, display)
        while self.trainer.state.step < steps and not interrupt.requested:
            try:
                line = self.trainer.step()
            except Diverged as error:
                self._summarise("diverged", str(error))
                raise
            if line.step % self.recipe.log.every == 0 or line.step == steps:
                self._write(line, display)
            if interrupt.requested or line.step == steps or (every and line.step % every == 0):
                self.held_out = self.trainer.evaluate()
                self._write(self.held_out, display)

    def finish(self) -> RunResult:
        """Saves the model, then the summary: a folder with a summary is complete."""
        save(self.trainer.state.model, self.folder / MODEL)
        self.data.tokenizer.save(self.folder / MODEL, self.data.end)
        step, steps = self.trainer.state.step, self.recipe.steps
        return self._summarise("finished", "") if step == steps else self._summarise("interrupted", f"after step {step} of {steps}")

    def _eval_every(self) -> int:
        amount = self.recipe.log.eval_every
        return max(1, steps_of(amount, self.recipe.steps)) if amount else 0

    def _write(self, line: Line, display: Display) -> None:
        self.log.write(line)
        display.show(line)

    def _summarise(self, status: Status, message: str) -> RunResult:
        self.log.close()
        trainer, account = self.trainer, self.trainer.account
        summary = Summary(
            status=status,
            message=message,
            model=self.manifest.name,
            digest=run_digest(self.recipe, self.manifest, self.data.digest),
            manifest_digest=self.manifest.digest,
            data_digest=self.data.digest,
            steps=trainer.state.step,
            tokens=trainer.tokens,
            flops=trainer.flops,
            seconds=trainer.state.seconds,
            tokens_per_second=trainer.tokens / trainer.state.seconds if trainer.state.seconds else 0.0,
            bits_per_byte=None if status == "diverged" else self.held_out.bits_per_byte,
            parameters=account.parameters,
            active_parameters=account.active_parameters,
            objective_parameters=account.objective_parameters,
            flops_per_token=account.flops_training,
            cache_bytes_per_token=account.cache_bytes_per_token,
            peak_memory=peak_memory(self.device),
            left_out=len(self.data.left_out),
            device=str(self.device),
            versions=_versions(),
        )
        write_summary(self.folder, summary)
        return RunResult(self.folder, summary)


def _check_free(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise BestiaryError(f"{folder} is a file, and the run needs a folder. Give another output folder.")
    if (folder / SUMMARY).exists() and not overwrite:
        raise BestiaryError(f"{folder} holds a run already. Give another output folder, or --overwrite (overwrite=True).")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECIPE).exists():
        raise BestiaryError(f"{folder} holds files that are no run. Give another output folder, or an empty one.")


def _clear(folder: Path) -> None:
    """Makes the folder, without the results of a run that was there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SUMMARY, METRICS):
        (folder / name).unlink(missing_ok=True)
    if (folder / MODEL).exists():
        shutil.rmtree(folder / MODEL)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"bestiary": version("bestiary"), "torch": torch.__version__, "python": platform.python_version()}
