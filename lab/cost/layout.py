"""Whether a model can be cut as a layout says, before anything is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...core.errors import BestiaryError, Problem
from ...core.layout import PLACE, Layout, cut_units, nearest
from ...core.manifest import Manifest
from ...core.weights import Entry
from .schedules import Schedule


def check_layout(layout: Layout, manifest: Manifest, entries: list[Entry], schedule: Schedule) -> None:
    """Whether a model can be cut so.

    Raises:
        BestiaryError: with everything that does not divide, and the nearest that does.
    """
    problems = [*_pipeline(layout, manifest, schedule), *_experts(layout, entries), *_tensors(layout, manifest, entries)]
    if problems:
        raise BestiaryError(*(Problem(fact, PLACE, remedy) for fact, remedy in problems))


def _pipeline(layout: Layout, manifest: Manifest, schedule: Schedule) -> Iterator[tuple[str, str]]:
    stages, units = schedule.stages(layout.pp), manifest.model.num_hidden_layers + 1
    if stages > units:
        fact = f"{layout.pp} pipeline ranks need {stages} stages, and {units - 1} layers with the head make {units} at most."
        yield fact, f"The most that fits {layout.gpus} GPUs: pp={_most(layout, units // (stages // layout.pp))}."
    if schedule.even and layout.pp % 2:
        valid = [n for n in range(2, units + 1, 2) if layout.gpus // layout.tp % n == 0]
        remedy = (
            f"The nearest: pp={min(valid, key=lambda n: abs(n - layout.pp))}."
            if valid
            else f"Take 1f1b, or another number than {layout.gpus}."
        )
        yield f"{schedule.name} needs an even number of pipeline ranks, not {layout.pp}.", remedy


def _most(layout: Layout, limit: int) -> int:
    ranks = layout.gpus // layout.tp
    return max(n for n in range(1, limit + 1) if ranks % n == 0)


def _experts(layout: Layout, entries: list[Entry]) -> Iterator[tuple[str, str]]:
    ranks = layout.dp * layout.tp
    counts = sorted({entry.weight.shape[0] for entry in entries if entry.weight.shard == "expert"})
    common = math.gcd(ranks, *counts)
    if layout.ep == 1:
        return
    if not counts:
        yield f"ep={layout.ep}, and the model has no experts.", "Leave ep out."
        return
    if ranks % layout.ep:
        yield f"ep={layout.ep} does not divide the dp * tp = {ranks} ranks of a stage.", f"The nearest: ep={nearest(layout.ep, common)}."
    for count in counts:
        if count % layout.ep:
            yield f"ep={layout.ep} does not divide {count} experts.", f"The nearest: ep={nearest(layout.ep, common)}."


def _tensors(layout: Layout, manifest: Manifest, entries: list[Entry]) -> Iterator[tuple[str, str]]:
    sizes = {"num_attention_heads": manifest.model.num_attention_heads, **cut_units(entries)}
    bad = [name for name, size in sizes.items() if size % layout.tp]
    if bad:
        more = f", nor {len(bad) - 1} others" if len(bad) > 1 else ""
        valid = nearest(layout.tp, math.gcd(layout.gpus // layout.pp, *sizes.values()))
        yield f"tp={layout.tp} does not divide {bad[0]} = {sizes[bad[0]]}{more}.", f"The nearest: tp={valid}."
