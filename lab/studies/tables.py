"""The tables of a report, as text in cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.manifest import Manifest
from ...core.manifest_diff import Difference, differences
from ..training.result import RunResult, Summary
from ..units import short, signed
from .reading import Reading

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Cells with a heading for each column."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: bool = True
    """Whether all columns but the first hold numbers, which stand at the right."""


def overview(runs: Mapping[str, RunResult], baseline: str) -> Table:
    """One row for each variant: quality, size, cost."""
    reference = runs[baseline].summary.bits_per_byte
    header = (
        "variant",
        "bits per byte, held out",
        "difference to baseline",
        "parameters",
        "active parameters",
        "training FLOPs per token",
        "KV cache per token",
        "tokens/s",
        "training time",
        "peak memory",
    )
    return Table(header, [_row(name, run.summary, reference, name == baseline) for name, run in runs.items()])


def _row(name: str, summary: Summary, reference: float | None, is_baseline: bool) -> tuple[str, ...]:
    value = summary.bits_per_byte
    delta = NONE if is_baseline or value is None or reference is None else signed(value - reference)
    return (
        f"{name} (baseline)" if is_baseline else name,
        f"diverged after step {summary.steps}" if value is None else f"{value:.3f}",
        delta,
        short(summary.parameters),
        short(summary.active_parameters),
        short(summary.flops_per_token),
        short(summary.cache_bytes_per_token, "B"),
        f"{summary.tokens_per_second:,.0f}",
        f"{summary.seconds:,.0f} s",
        short(summary.peak_memory, "B"),
    )


def equal_budgets(tokens: Reading, flops: Reading, runs: Mapping[str, RunResult], baseline: str) -> Table:
    """Every variant at the same tokens and at the same FLOPs."""
    header = (
        "variant",
        f"bits per byte at {short(tokens.budget)} tokens",
        "difference",
        f"bits per byte at {short(flops.budget)} FLOPs",
        "difference",
    )
    rows = [(name, *_cells(tokens, name, baseline), *_cells(flops, name, baseline)) for name in runs]
    return Table(header, rows)


def _cells(reading: Reading, name: str, baseline: str) -> tuple[str, str]:
    value, reference = reading.values.get(name), reading.values.get(baseline)
    if value is None:
        return "diverged", NONE
    return f"{value:.3f}", NONE if name == baseline or reference is None else signed(value - reference)


def changes(manifests: Mapping[str, Manifest], baseline: str, name: str) -> Table:
    """What differs between a variant's manifest and the baseline's; a slot that holds another component is one row."""
    found = differences(manifests[baseline], manifests[name])
    swapped = [row.path.removesuffix(".use") for row in found if row.path.endswith(".use")]
    outer = [path for path in swapped if not any(path.startswith(f"{other}.") for other in swapped)]
    rows = [(path, _component(found, path, 1), _component(found, path, 2)) for path in outer]
    rows += [(row.path, _value(row.a), _value(row.b)) for row in found if not row.path.startswith(tuple(f"{path}." for path in outer))]
    return Table(("setting", baseline, name), rows, numbers=False)


def _component(found: list[Difference], path: str, side: int) -> str:
    """`gqa: num_key_value_heads 2, ...`; options that are equal on both sides are not among the differences."""
    inner = [(row.path.removeprefix(f"{path}."), row[side]) for row in found if row.path.startswith(f"{path}.")]
    use = dict(inner).get("use")
    options = ", ".join(f"{key} {_value(value)}" for key, value in inner if key != "use" and value is not None)
    return f"{_value(use)}{f': {options}' if options else ''}"


def _value(value: object) -> str:
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def provenance(runs: Mapping[str, RunResult]) -> Table:
    """The digests by which runs are recognised."""
    rows = [(name, *(digest[:16] for digest in _digests(run.summary))) for name, run in runs.items()]
    return Table(("variant", "run", "manifest", "data"), rows, numbers=False)


def _digests(summary: Summary) -> tuple[str, str, str]:
    return summary.digest, summary.manifest_digest, summary.data_digest
