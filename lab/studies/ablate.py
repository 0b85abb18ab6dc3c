"""`bestiary ablate`: every variant of a study on the same data in the same order, one after another.

Each run is a process of its own, so that one run's memory does not appear in another's figures, and one that is killed
does not take the study along. A finished run whose recipe, manifest and data are unchanged is used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...core.errors import BestiaryError
from ..data.corpus import read_corpus
from ..data.dataset import data_digest
from ..data.tokens import open_tokenizer
from ..options import Recipe
from ..progress import console
from ..training.result import RunResult, read_run
from ..training.train import run_digest
from ..training.worker import train_apart
from .study import Study, load_study


@dataclass(frozen=True)
class StudyResult:
    """A study whose runs are all there."""

    study: Study
    folder: Path
    runs: dict[str, RunResult]
    """By variant, the baseline first."""
    reused: tuple[str, ...]
    """Variants that were finished before."""
    report: Path
    """The HTML page; `report.md` beside it says the same."""


def ablate(study: Study | str | Path, *, out: str | Path | None = None, progress: bool = True) -> StudyResult:
    """Trains the variants of a study and writes the report that compares them.

    Args:
        study: the study, or the path of one.
        out: folder of runs and report; the study's own `out` by default.
        progress: whether to show progress on stderr.

    Raises:
        BestiaryError: the study or its data cannot be used, or it was interrupted; finished runs are kept for the next time.
    """
    from .report import write_report

    study = study if isinstance(study, Study) else load_study(study)
    folder = Path(out) if out is not None else study.out
    digests = _digests(study)
    done = {name: _finished(folder / name, digest) for name, digest in digests.items()}
    reused = tuple(name for name, run in done.items() if run is not None)
    runs: dict[str, RunResult] = {}
    for name, recipe in study.recipes.items():
        before = done[name]
        if before is not None and progress:
            console.print(f"{name}: finished before, used again ({before.folder})", soft_wrap=True, highlight=False)
        runs[name] = before or _train(name, recipe, folder / name, digests[name], progress)
    return StudyResult(study, folder, runs, reused, write_report(study, runs, folder))


def _digests(study: Study) -> dict[str, str]:
    """What each variant's run will be called; the data are the same for all."""
    recipe = study.recipes[study.baseline]
    data = data_digest(recipe, read_corpus(recipe.data), open_tokenizer(recipe.data.tokenizer))
    return {name: run_digest(own, study.manifests[name], data) for name, own in study.recipes.items()}


def _finished(folder: Path, digest: str) -> RunResult | None:
    run = read_run(folder)
    usable = run is not None and run.summary.digest == digest and run.summary.status != "interrupted"
    return run if usable else None


def _train(name: str, recipe: Recipe, folder: Path, digest: str, progress: bool) -> RunResult:
    try:
        code = train_apart(recipe, folder, progress=progress)
    except KeyboardInterrupt:
        raise BestiaryError(
            f"Interrupted during '{name}'. Finished runs are kept in {folder.parent}; the same command goes on from there."
        ) from None
    run = read_run(folder)
    if run is None or run.summary.digest != digest:
        ending = f"signal {-code} (out of memory?)" if code < 0 else f"exit code {code}"
        raise BestiaryError(f"The run of '{name}' ended with {ending} and left no result. See what it printed above.")
    return run
