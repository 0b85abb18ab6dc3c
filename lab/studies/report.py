"""The report of a study: what was compared, how, and what came out, as one HTML page and the same in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..data.options import BYTES, STDLIB
from ..options import Recipe
from ..training.result import RunResult
from ..units import short
from . import costs, plots
from .provenance import changes, matching, runs_table
from .reading import Runs, read_equal
from .render import to_html, to_markdown
from .study import Study
from .tables import Table, compare, equal_budgets, overview, routing, sizes, training_loss

INTERVAL_NOTE = (
    "A difference is the mean over seeds of (variant - baseline), seed by seed: equal seeds share the order of the data. Its interval "
    "is Student's t; it holds the true mean in 95 of 100 such studies, for each variant taken alone. Where it excludes zero the variant "
    "differs; where it does not, these runs cannot tell."
)
SEED_NOTE = (
    "Each variant was trained once, from one seed, so nothing can be concluded about differences between them: another seed changes "
    "the result too. Set seeds = [0, 1, 2] in the study."
)
DIVERGED_NOTE = (
    "Differences are taken over the seeds that ended in both. Those that diverged are no part of them, which flatters a variant."
)
BAND_NOTE = "Lines are means over seeds, shades their range; here and below."
TRAINING_NOTE = (
    "Of the batches, at the end of training: an exponential average in which each logged step weighs 0.9 of the next. A seed's column has "
    "the baseline's value, and by how much others differ from it with the same seed; an interval is as above."
)
EQUAL_NOTE = (
    "Read between evaluations by linear interpolation, at the largest budget that every run reached. A run that is read before "
    "its own end is read before its learning rate has fallen, to its disadvantage."
)
SIZE_NOTE = (
    "Active parameters are those that one token uses, with the head and without the input embedding; what objectives add is counted "
    "apart. FLOPs are counted from the manifest, forward and backward, causal attention and all objectives included. Speed, time and "
    "memory are means over seeds on the machine that ran them, with whatever else it was doing."
)
ROUTING_NOTE = (
    "MaxVio is (largest expert load - mean load) / mean load, mean over layers: 0 when every expert has equal work. The first figure "
    "counts all steps since the last evaluation but one; the second, one held-out sequence at a time, is high where experts specialise "
    "in kinds of text. Agreement is how often a depth's most likely token is the main model's own, on held-out text: what greedy "
    "speculative decoding would accept."
)
LOAD_NOTE = "Held-out text, at the end of the first seed; experts have no order, so seeds are not averaged."
COST_NOTE = (
    "Estimates, not measurements: counted FLOPs over the GPU's peak at the utilisation that `bestiary cost` assumes. The full-scale "
    "model takes the variant's changes as they are written, and is matched again with the study's rule."
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


def write_report(study: Study, runs: Runs, folder: Path) -> Path:
    """Writes `report.html`, which needs nothing beside it, and `report.md` with its plots.

    Returns:
        The path of `report.html`.
    """
    report = compose(study, runs, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for name, svg in section.figures.items():
            (folder / name).write_text(svg, encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    return folder / "report.html"


def compose(study: Study, runs: Runs, folder: Path) -> Report:
    """The report's content."""
    sections = [
        _result(study, runs),
        Section("Held-out loss against tokens", figures={"tokens.svg": plots.held_out_curves(runs, "tokens")}, notes=[BAND_NOTE]),
        Section("Held-out loss against compute", figures={"flops.svg": plots.held_out_curves(runs, "flops")}),
        _training(study, runs),
        *_equal(runs, study.baseline),
        Section("Size and speed", tables=[sizes(runs)], notes=[SIZE_NOTE]),
        *_costs(study),
        *_routing(runs),
        *_matching(study),
        Section("What differs", tables=[changes(study, name) for name in runs if name != study.baseline]),
        Section("Do it again", code=_commands(study, folder), tables=[runs_table(runs)], notes=[_versions(_first(runs))]),
    ]
    return Report(study.title, sections)


def _result(study: Study, runs: Runs) -> Section:
    compared = compare(runs, study.baseline)
    seeds = max(len(own) for own in runs.values())
    return Section(
        "Result",
        paragraphs=[text for text in (study.description, _setting(study, runs)) if text],
        figures={"differences.svg": plots.differences(compared, list(runs))} if compared else {},
        tables=[overview(runs, study.baseline)],
        notes=[*_divergences(runs), INTERVAL_NOTE if seeds > 1 else SEED_NOTE],
    )


def _training(study: Study, runs: Runs) -> Section:
    drawn = plots.training_differences(runs, study.baseline)
    figures = {"training.svg": drawn} if drawn else {}
    return Section("Training loss", figures=figures, tables=[training_loss(runs, study.baseline)], notes=[TRAINING_NOTE])


def _equal(runs: Runs, baseline: str) -> list[Section]:
    tokens, flops = read_equal(runs, "tokens"), read_equal(runs, "flops")
    if tokens is None or flops is None:
        return []
    return [Section("At equal tokens and at equal compute", tables=[equal_budgets(tokens, flops, baseline)], notes=[EQUAL_NOTE])]


def _costs(study: Study) -> list[Section]:
    scale = study.full_scale
    if scale is None:
        return []
    options = scale.options
    price = f", at ${options.price:g} an hour" if options.price else ""
    each = f"each variant as it is here, and {options.model} with the same changes on {options.tokens} tokens"
    text = f"Training on {options.gpu.upper()}s{price}: {each}."
    return [Section("Estimated cost", paragraphs=[text], tables=[costs.costs(scale)], notes=[COST_NOTE, *costs.notes(scale)])]


def _routing(runs: Runs) -> Iterator[Section]:
    table, balance, agreement, load = routing(runs), plots.balance(runs), plots.agreement(runs), plots.expert_load(runs)
    if table is not None:
        drawn = {name: svg for name, svg in (("balance.svg", balance), ("agreement.svg", agreement)) if svg}
        yield Section("Balance of experts, and tokens predicted ahead", figures=drawn, tables=[table], notes=[ROUTING_NOTE])
    if load is not None:
        yield Section("Load of every expert", figures={"experts.svg": load}, notes=[LOAD_NOTE])


def _matching(study: Study) -> list[Section]:
    table = matching(study)
    left_out = [f"{name} is the same as {study.baseline}, and left out." for name in study.same_as_baseline]
    return [Section("What was made equal", tables=[table] if table else [], notes=left_out)] if table or left_out else []


def _setting(study: Study, runs: Runs) -> str:
    recipe = study.variants[study.baseline].recipe
    data = recipe.data
    reader = "bytes" if data.tokenizer == BYTES else Path(data.tokenizer).name
    model = Path(recipe.model).stem if "/" in recipe.model else recipe.model
    seeds = next(iter(runs.values()))
    times = f", from {len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f", from one seed ({next(iter(seeds))})"
    budgets = {variant.recipe.budget.tokens for variant in study.variants.values()}
    whose = "" if len(budgets) == 1 else " for the baseline"
    left_out = _first(runs).summary.left_out
    return (
        f"{len(runs)} variants of {model}{times}, trained for {short(recipe.budget.tokens)} tokens{whose} ({recipe.steps:,} steps of "
        f"{recipe.train.batch_size} rows of {data.sequence_length}) of {_source(recipe)}, read as {reader}, all on the same text in the "
        "same order. Lower is better: bits per byte of held-out documents."
        f"{f' {left_out} files that are not UTF-8 text were left out.' if left_out else ''}"
    )


def _first(runs: Runs) -> RunResult:
    return next(iter(next(iter(runs.values())).values()))


def _source(recipe: Recipe) -> str:
    names = ["the Python standard library's sources" if name == STDLIB else Path(name).name for name in recipe.data.source]
    return " and ".join(names)


def _divergences(runs: Runs) -> list[str]:
    found = []
    for name, own in runs.items():
        lost = {seed: run.summary for seed, run in own.items() if run.summary.status == "diverged"}
        if lost:
            when = ", ".join(f"seed {seed} after step {summary.steps}" for seed, summary in lost.items())
            found.append(f"{name}: {len(lost)} of {len(own)} runs diverged: {when}. {next(iter(lost.values())).message}")
    return [*found, DIVERGED_NOTE] if found else []


def _commands(study: Study, folder: Path) -> str:
    changed = [part for item in study.set for part in ("--set", item)]
    out = [] if folder.resolve() == study.out.resolve() else ["--out", _shown(folder)]
    lines = [shlex.join(["bestiary", "ablate", _shown(study.source), *out, *changed])]
    first = next(iter(study.runs(study.baseline)))
    base, *others = (_shown(folder / name / f"seed-{first}" / "manifest.json") for name in study.variants)
    return "\n".join([*lines, *(shlex.join(["bestiary", "diff", base, other]) for other in others)])


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    here, path = Path.cwd(), path.resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _versions(run: RunResult) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.summary.versions.items())
    return f"Made with {versions} on {run.summary.device}. Each run's folder holds a recipe.json that `bestiary train` repeats it from."
