"""What was compared with what, and how to recognise it, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.manifest import Manifest
from ...core.manifest_diff import Difference, differences
from ...core.tree import join
from ..checked import table as recipe_table
from ..options import Recipe
from ..units import percent, short
from .reading import Runs
from .study import Study
from .tables import NONE, Table

ELSEWHERE = ("schema", "model", "set", "out")
"""Of a recipe: what its manifest shows, or what changes no result."""


def changes(study: Study, name: str) -> Table:
    """What differs between a variant and the baseline: settings of the recipe, then of the manifest."""
    base, variant = study.variants[study.baseline], study.variants[name]
    rows = [*_of_recipe(base.recipe, variant.recipe), *_of_manifest(base.manifest, variant.manifest)]
    return Table(("setting", study.baseline, name), rows, numbers=False)


def _of_recipe(a: Recipe, b: Recipe) -> list[tuple[str, str, str]]:
    left, right = (dict(_flat({key: value for key, value in recipe_table(one).items() if key not in ELSEWHERE})) for one in (a, b))
    return [(key, _value(left.get(key)), _value(right.get(key))) for key in left | right if left.get(key) != right.get(key)]


def _flat(table: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in table.items():
        inner = join(path, key)
        rows += _flat(value, inner) if isinstance(value, Mapping) else [(inner, value)]
    return rows


def _of_manifest(a: Manifest, b: Manifest) -> list[tuple[str, str, str]]:
    """A slot that holds another component is one row."""
    found = differences(a, b)
    swapped = [row.path.removesuffix(".use") for row in found if row.path.endswith(".use")]
    outer = [path for path in swapped if not any(path.startswith(f"{other}.") for other in swapped)]
    rows = [(path, _component(found, path, 1), _component(found, path, 2)) for path in outer]
    inside = tuple(f"{path}." for path in outer)
    return rows + [(row.path, _value(row.a), _value(row.b)) for row in found if not row.path.startswith(inside)]


def _component(found: list[Difference], path: str, side: int) -> str:
    """`gqa: num_key_value_heads 2, ...`; options that are equal on both sides are not among the differences."""
    inner = [(row.path.removeprefix(f"{path}."), row[side]) for row in found if row.path.startswith(f"{path}.")]
    use = dict(inner).get("use")
    options = ", ".join(f"{key} {_value(value)}" for key, value in inner if key != "use" and value is not None)
    return f"{_value(use)}{f': {options}' if options else ''}"


def _value(value: object) -> str:
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def matching(study: Study) -> Table | None:
    """What was solved for, and how near that came; None where nothing was."""
    header = ("variant", "equal", "solved for", "value", "baseline", "variant's", "difference")
    rows = [
        (name, found.words, found.by, str(found.value), short(found.target), short(found.reached), percent(found.deviation))
        for name, found in study.matched.items()
    ]
    return Table(header, rows, numbers=False) if rows else None


def runs_table(runs: Runs) -> Table:
    """Every run with the digests by which it is recognised."""
    rows = []
    for name, own in runs.items():
        for seed, run in own.items():
            summary = run.summary
            held_out = NONE if summary.bits_per_byte is None else f"{summary.bits_per_byte:.4f}"
            digests = (summary.digest[:12], summary.manifest_digest[:12], summary.data_digest[:12])
            rows.append((f"{name}/seed-{seed}", summary.status, str(summary.steps), held_out, *digests))
    return Table(("run", "ended", "steps", "bits per byte", "run's digest", "manifest", "data"), rows, numbers=False)
