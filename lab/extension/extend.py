"""`bestiary extend`: probe, train a phase, probe again, and one report of it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import BestiaryError
from ...core.host import keep_freed_memory
from ..data.dataset import open_data
from ..options import Recipe
from ..progress import console
from ..training.result import SUMMARY, RunResult, read_run
from ..training.train import run_digest, train
from .extension import Extension, load_extension
from .probe import Probe, Prober, newest
from .report import write_report

BEFORE, UNTRAINED = "before", "before, with YaRN"


@dataclass(frozen=True)
class ExtensionResult:
    """An extension with all its phases done."""

    extension: Extension
    folder: Path
    runs: tuple[RunResult, ...]
    """One for each phase."""
    probes: tuple[Probe, ...]
    """Before, with YaRN alone, and after each phase."""
    report: Path
    """The HTML page; `report.md` beside it says the same."""

    @property
    def model(self) -> Path:
        """Folder of the extended model, for `bestiary.load`."""
        return self.runs[-1].model


def extend(extension: Extension | str | Path, *, out: str | Path | None = None, progress: bool = True) -> ExtensionResult:
    """Takes a trained model to longer contexts and measures what that changes.

    Phases and probes that are in the folder already are used again; a phase that was cut off goes on.

    Args:
        extension: the extension, or the path of one.
        out: folder of runs and report; the extension's own by default.
        progress: whether to show progress on stderr.

    Raises:
        BestiaryError: the file, the model or the data cannot be used, or the run was interrupted.
    """
    extension = extension if isinstance(extension, Extension) else load_extension(extension, out=out)
    keep_freed_memory()
    last = extension.recipes[-1]
    data = open_data(last, last.manifest())
    probe = Prober(extension.options, data, extension.out / "probes", device=last.train.device)
    probes = [probe(BEFORE, extension.start, {}), probe(UNTRAINED, extension.start, extension.changes)]
    runs: list[RunResult] = []
    for index, recipe in enumerate(extension.recipes, start=1):
        runs.append(_phase(index, recipe, progress))
        probes.append(probe(f"after phase {index}", runs[-1].model, {}))
    report = write_report(extension, runs, probes)
    return ExtensionResult(extension, extension.out, tuple(runs), tuple(probes), report)


def _phase(index: int, recipe: Recipe, progress: bool) -> RunResult:
    done = _finished(recipe)
    if done is not None and progress:
        console.print(f"phase {index}: finished before, used again ({done.folder})", soft_wrap=True, highlight=False)
    run = done or train(recipe, progress=progress, overwrite=True)
    if run.summary.status != "finished":
        raise BestiaryError(f"Interrupted in phase {index}, {run.summary.message}. The same command goes on from there.")
    return run


def _finished(recipe: Recipe) -> RunResult | None:
    """The run of this very recipe, unless its start was written after it."""
    folder = Path(recipe.out)
    run = read_run(folder)
    if run is None or run.summary.status != "finished":
        return None
    manifest = recipe.manifest()
    same = run.summary.digest == run_digest(recipe, manifest, open_data(recipe, manifest).digest)
    return run if same and newest(Path(recipe.train.start)) < (folder / SUMMARY).stat().st_mtime_ns else None
