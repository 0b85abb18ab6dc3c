"""The report of an extension: loss by position and needles, before and after each phase."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from ..evaluation.plots import heat_maps, position_curves
from ..studies.render import to_html, to_markdown
from ..studies.report import Report, Section
from ..studies.tables import Table
from ..training.result import RunResult, write_json
from ..units import short, signed
from .extension import Extension
from .probe import Probe

CURVES, MAPS, NUMBERS = "positions.svg", "needle.png", "extension.json"
YARN_NOTE = (
    "'before' is the model as it was trained; 'before, with YaRN' the same weights with positions stretched and nothing trained, "
    "which tells what YaRN does from what training does."
)
NEEDLE_NOTE = (
    'A line such as NEEDLE_7F3A = "k3x9q2ab" lies in held-out text, and the prompt ends by beginning it again. Each number is the share of '
    "the value's tokens that the model finds most likely, each predicted from the true ones before it, over {count} needles; guessing "
    "gives 0.03. The control asks without the needle."
)
ERROR_NOTE = "\N{PLUS-MINUS SIGN} is one standard error over {count} documents; the documents are the same in every row."


def write_report(extension: Extension, runs: Sequence[RunResult], probes: Sequence[Probe]) -> Path:
    """Writes `report.html`, `report.md`, their pictures, and the numbers as `extension.json`.

    Returns:
        The path of `report.html`.
    """
    folder, picture = extension.out, heat_maps({probe.name: probe.needle for probe in probes})
    curves = position_curves({probe.name: probe.positions for probe in probes}, _marks(extension))
    inline = f'<img style="max-width: 100%" alt="{MAPS}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    report = Report(extension.title, _sections(extension, runs, probes, curves, inline))
    (folder / CURVES).write_text(curves, encoding="utf-8")
    (folder / MAPS).write_bytes(picture)
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    phases = [{"summary": asdict(run.summary), "recipe": json.loads((run.folder / "recipe.json").read_text())} for run in runs]
    write_json(folder / NUMBERS, {"changes": extension.changes, "probes": [asdict(probe) for probe in probes], "phases": phases})
    return folder / "report.html"


def _sections(extension: Extension, runs: Sequence[RunResult], probes: Sequence[Probe], curves: str, maps: str) -> list[Section]:
    yarn = ", ".join(f"{name} {value}" for name, value in extension.changes["block.attention.rope.scaling"].items() if name != "type")
    steps = [f"{recipe.data.sequence_length:,} tokens" for recipe in extension.recipes]
    setting = f"{runs[0].summary.model} is taken to rows of {', then '.join(steps)}, with YaRN ({yarn})."
    return [
        Section("Result", [text for text in (extension.description, setting) if text], tables=[overview(probes)], notes=[YARN_NOTE]),
        Section(
            "Loss by position",
            figures={CURVES: curves},
            tables=[position_table(probes)],
            notes=[ERROR_NOTE.format(count=probes[0].positions.documents)],
        ),
        Section(
            "Needle in a haystack",
            figures={MAPS: maps},
            tables=[needle_table(probes)],
            notes=[NEEDLE_NOTE.format(count=probes[0].needle.count)],
        ),
        Section("Phases", tables=[phase_table(extension, runs)]),
        Section(
            "Do it again", code=_command(extension), notes=[f"Numbers are in {NUMBERS}; each phase's folder is a run of `bestiary train`."]
        ),
    ]


def overview(probes: Sequence[Probe]) -> Table:
    """The longest positions and the needles, one row for each model."""
    before = probes[0].positions.bits_per_byte[-1]
    low, high = probes[0].positions.edges[-2:]
    header = ("model", f"bits per byte at {low + 1:,} to {high:,} tokens", "difference", "needle tokens right", "needles found")
    rows = [
        (
            probe.name,
            f"{probe.positions.bits_per_byte[-1]:.3f}",
            signed(probe.positions.bits_per_byte[-1] - before) if index else "\N{EN DASH}",
            f"{_mean(probe.needle.share):.2f}",
            f"{_mean(probe.needle.found):.2f}",
        )
        for index, probe in enumerate(probes)
    ]
    return Table(header, rows)


def position_table(probes: Sequence[Probe]) -> Table:
    """Bits per byte in every bin."""
    edges = probes[0].positions.edges
    bins = [f"{low + 1:,} to {high:,}" for low, high in pairwise(edges)]
    losses = [probe.positions for probe in probes]
    rows = [
        (name, *(f"{loss.bits_per_byte[i]:.3f} \N{PLUS-MINUS SIGN} {loss.error[i]:.3f}" for loss in losses)) for i, name in enumerate(bins)
    ]
    return Table(("tokens read before", *(probe.name for probe in probes)), rows)


def needle_table(probes: Sequence[Probe]) -> Table:
    """By length, mean over depths: tokens right, the control, and what the needle is worth."""
    rows = [
        (probe.name, f"{length:,}", f"{_mean([share]):.2f}", f"{control:.2f}", f"{_mean([found]):.2f}", f"{_mean([gain]):.2f}")
        for probe in probes
        for length, share, control, found, gain in zip(*_columns(probe), strict=True)
    ]
    return Table(("model", "tokens of the prompt", "value tokens right", "control", "values found", "gain, nats a token"), rows)


def _columns(probe: Probe) -> tuple[Sequence, ...]:
    needle = probe.needle
    return needle.lengths, needle.share, needle.control, needle.found, needle.gain


def phase_table(extension: Extension, runs: Sequence[RunResult]) -> Table:
    """What each phase read, and how it went."""
    header = ("phase", "row", "rows a step", "steps", "peak learning rate", "tokens", "held-out bits per byte, its rows", "training time")
    rows = [
        (
            str(index),
            f"{recipe.data.sequence_length:,}",
            str(recipe.train.batch_size),
            str(recipe.steps),
            f"{recipe.optimizer.lr:g}",
            short(run.summary.tokens),
            f"{run.summary.bits_per_byte:.3f}",
            f"{run.summary.seconds:,.0f} s",
        )
        for index, (recipe, run) in enumerate(zip(extension.recipes, runs, strict=True), start=1)
    ]
    return Table(header, rows)


def _mean(grid: Sequence[Sequence[float]]) -> float:
    values = [value for row in grid for value in row]
    return sum(values) / len(values)


def _marks(extension: Extension) -> dict[str, int]:
    original = extension.options.yarn.original_max_position_embeddings
    return {"trained before": original} | {f"phase {i}": r.data.sequence_length for i, r in enumerate(extension.recipes, start=1)}


def _command(extension: Extension) -> str:
    here = Path.cwd()
    source = extension.source.relative_to(here) if extension.source.is_relative_to(here) else extension.source.name
    return shlex.join(["bestiary", "extend", str(source)])
