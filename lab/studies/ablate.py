"""`bestiary ablate`: every variant of a study, from every seed, on the same data in the same order.

A finished run whose recipe, manifest and data are unchanged is used again; one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import BestiaryError, Problem
from ...core.manifest import Manifest
from ..data.dataset import open_data
from ..options import Recipe
from ..progress import console
from ..training.result import RunResult, read_run
from ..training.train import run_digest
from .engines import Engine, Job, open_engine
from .study import Study, load_study


@dataclass(frozen=True)
class StudyResult:
    """A study whose runs are all there."""

    study: Study
    folder: Path
    runs: dict[str, dict[int, RunResult]]
    """By variant, the baseline first, and seed. A run that diverged is among them."""
    reused: tuple[str, ...]
    """Runs that were finished before, as `variant/seed-0`."""
    report: Path
    """The HTML page; `report.md` beside it says the same."""


def ablate(study: Study | str | Path, *, out: str | Path | None = None, engine: Engine | None = None, progress: bool = True) -> StudyResult:
    """Trains the variants of a study and writes the report that compares them.

    Args:
        study: the study, or the path of one.
        out: folder of runs and report; the study's own `out` by default.
        engine: where runs are carried out; one after another on this machine by default.
        progress: whether to show progress on stderr.

    Raises:
        BestiaryError: the study or its data cannot be used, or it was interrupted; finished runs are kept for the next time.
    """
    from .report import write_report

    study = study if isinstance(study, Study) else load_study(study)
    folder = Path(out) if out is not None else study.out
    jobs = _jobs(study, folder)
    done = {job: run for job in jobs if (run := _finished(job)) is not None}
    reused = tuple(str(job.folder.relative_to(folder)) for job in done)
    if progress:
        _announce(study, jobs, done)
    done |= _carry_out(engine or open_engine("local", progress=progress), [job for job in jobs if job not in done], folder, progress)
    runs: dict[str, dict[int, RunResult]] = {}
    for job in jobs:
        runs.setdefault(job.variant, {})[job.seed] = done[job]
    return StudyResult(study, folder, runs, reused, write_report(study, runs, folder))


def _jobs(study: Study, folder: Path) -> list[Job]:
    """Every run of the study: the first seed of every variant first, so that a study cut short compares something."""
    digests: dict[str, str] = {}
    jobs = [
        Job(name, seed, recipe, folder / name / f"seed-{seed}", _digest(recipe, variant.manifest, digests))
        for name, variant in study.variants.items()
        for seed, recipe in study.runs(name).items()
    ]
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    return sorted(jobs, key=lambda job: seeds.index(job.seed))


def _digest(recipe: Recipe, manifest: Manifest, known: dict[str, str]) -> str:
    """What a run will be called; text is opened once for each way in which it is read."""
    key = f"{recipe.data.model_dump_json()} {manifest.model.vocab_size} {manifest.model.eos_token_id}"
    if key not in known:
        known[key] = open_data(recipe, manifest).digest
    return run_digest(recipe, manifest, known[key])


def _finished(job: Job) -> RunResult | None:
    run = read_run(job.folder)
    usable = run is not None and run.summary.digest == job.digest and run.summary.status != "interrupted"
    return run if usable else None


def _announce(study: Study, jobs: Sequence[Job], done: dict[Job, RunResult]) -> None:
    for name, matched in study.matched.items():
        _say(f"{name}: {matched}")
    for name in study.same_as_baseline:
        _say(f"{name}: the same as {study.baseline}, left out")
    for job, run in done.items():
        _say(f"{job.name}: {run.summary.status} before, used again ({run.folder})")
    _say(f"{len(jobs) - len(done)} of {len(jobs)} runs to do")


def _carry_out(engine: Engine, jobs: Sequence[Job], folder: Path, progress: bool) -> dict[Job, RunResult]:
    done: dict[Job, RunResult] = {}
    try:
        for job, code in engine.run(jobs):
            done[job] = _ended(job, code)
            if progress:
                _say(f"{len(done)}/{len(jobs)}  {job.name}: {_outcome(done[job])}")
    except KeyboardInterrupt:
        raise BestiaryError(
            f"Interrupted after {len(done)} of {len(jobs)} runs. What is finished is kept in {folder}; the same command goes on from there."
        ) from None
    return done


def _ended(job: Job, code: int) -> RunResult:
    run = read_run(job.folder)
    if run is None or run.summary.digest != job.digest:
        ending = f"signal {-code} (out of memory?)" if code < 0 else f"exit code {code}"
        fact = f"the run of '{job.name}' ended with {ending} and left no result."
        raise BestiaryError(Problem(fact, remedy="See what it printed above. Finished runs are kept; the same command goes on."))
    if run.summary.status == "interrupted":
        raise KeyboardInterrupt
    return run


def _outcome(run: RunResult) -> str:
    held_out = run.summary.bits_per_byte
    return run.summary.status if held_out is None else f"{held_out:.3f} bits per byte held out, {run.summary.seconds:,.0f} s"


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
