"""The report of a study: what was compared, how, and what came out, as one HTML page and the same in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data.options import BYTES, STDLIB
from ..options import Recipe
from ..training.result import RunResult
from ..units import short
from .plots import curves
from .reading import read_equal
from .render import to_html, to_markdown
from .study import Study
from .tables import Table, changes, equal_budgets, overview, provenance

SEED_NOTE = (
    "Each variant was trained once, from one seed. That decides nothing about small differences, since another seed changes the result "
    "too: repeat with other seeds before believing one."
)
EQUAL_NOTE = (
    "Read between evaluations by linear interpolation, at the largest budget that every variant reached. A run that is read before "
    "its own end is read before its learning rate has fallen, to its disadvantage."
)
COST_NOTE = (
    "Active parameters are those that one token uses, with the head and without the input embedding. FLOPs are counted from the manifest, "
    "forward and backward, causal attention and all objectives included. Speed and memory are those of the machine that ran it."
)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    """SVG by file name."""
    tables: list[Table] = field(default_factory=list)
    code: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """A page: what `report.html` and `report.md` both show."""

    title: str
    sections: list[Section]


def write_report(study: Study, runs: Mapping[str, RunResult], folder: Path) -> Path:
    """Writes `report.html`, which needs nothing beside it, and `report.md` with its plots.

    Returns:
        The path of `report.html`.
    """
    report = compose(study, runs)
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for name, svg in section.figures.items():
            (folder / name).write_text(svg, encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    return folder / "report.html"


def compose(study: Study, runs: Mapping[str, RunResult]) -> Report:
    """The report's content."""
    baseline = study.baseline
    sections = [
        Section(
            "Result",
            paragraphs=[text for text in (study.description, _setting(study, runs)) if text],
            tables=[overview(runs, baseline)],
            notes=[*_divergences(runs), SEED_NOTE, COST_NOTE],
        ),
        Section("Against tokens", figures={"tokens.svg": curves(runs, "tokens")}),
        Section("Against compute", figures={"flops.svg": curves(runs, "flops")}),
        *_equal(runs, baseline),
        Section("What differs", tables=[changes(study.manifests, baseline, name) for name in runs if name != baseline]),
        Section("Do it again", code=_command(study), tables=[provenance(runs)], notes=[_versions(runs[baseline])]),
    ]
    return Report(study.title, sections)


def _equal(runs: Mapping[str, RunResult], baseline: str) -> list[Section]:
    tokens, flops = read_equal(runs, "tokens"), read_equal(runs, "flops")
    if tokens is None or flops is None:
        return []
    return [Section("At equal tokens and at equal compute", tables=[equal_budgets(tokens, flops, runs, baseline)], notes=[EQUAL_NOTE])]


def _setting(study: Study, runs: Mapping[str, RunResult]) -> str:
    recipe = study.recipes[study.baseline]
    data = recipe.data
    budget = recipe.steps * recipe.tokens_per_step
    reader = "bytes" if data.tokenizer == BYTES else Path(data.tokenizer).name
    model = Path(recipe.model).stem if "/" in recipe.model else recipe.model
    rows = f"{recipe.train.batch_size} rows of {data.sequence_length}"
    return (
        f"{len(runs)} variants of {model}, each trained for {short(budget)} tokens ({recipe.steps:,} steps of {rows}) of "
        f"{_source(recipe)}, read as {reader}, all on the same text in the same order. "
        f"Lower is better: bits per byte of held-out documents.{_left_out(runs[study.baseline])}"
    )


def _left_out(run: RunResult) -> str:
    return f" {run.summary.left_out} files that are not UTF-8 text were left out." if run.summary.left_out else ""


def _source(recipe: Recipe) -> str:
    names = ["the Python standard library's sources" if name == STDLIB else Path(name).name for name in recipe.data.source]
    return " and ".join(names)


def _divergences(runs: Mapping[str, RunResult]) -> list[str]:
    return [f"{name} diverged. {run.summary.message}" for name, run in runs.items() if run.summary.status == "diverged"]


def _command(study: Study) -> str:
    here = Path.cwd()
    source = study.source.relative_to(here) if study.source.is_relative_to(here) else study.source
    changed = [part for item in study.set for part in ("--set", item)]
    return shlex.join(["bestiary", "ablate", str(source), *changed])


def _versions(run: RunResult) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.summary.versions.items())
    return f"Made with {versions} on {run.summary.device}. Each run's folder holds a recipe.json that `bestiary train` repeats it from."
