"""What the runs of a study came to, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from ..units import percent, short, signed
from .plots import agreements
from .reading import Reading, Runs, Seeds, ended, figures, last_with, mean, trained
from .statistics import Paired, paired

NONE = "\N{EN DASH}"
WORDS = {"lower": "differs: lower", "higher": "differs: higher", "cannot tell": "cannot tell"}


@dataclass(frozen=True)
class Table:
    """Cells with a heading for each column."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: bool = True
    """Whether all columns but the first hold numbers, which stand at the right."""


def bits_per_byte(runs: Seeds) -> dict[int, float]:
    """Held-out, by seed, of runs that did not diverge."""
    return figures(runs, lambda summary: summary.bits_per_byte)


def compare(runs: Runs, baseline: str) -> dict[str, Paired]:
    """Every other variant's held-out bits per byte beside the baseline's, where any seed ended in both."""
    reference = bits_per_byte(runs[baseline])
    found = {name: paired(bits_per_byte(own), reference) for name, own in runs.items() if name != baseline}
    return {name: value for name, value in found.items() if value is not None}


def overview(runs: Runs, baseline: str) -> Table:
    """One row for each variant: what came out, and how sure that is."""
    header = ("variant", "runs", "bits per byte, held out", "range", "difference", "95 % interval", "in words")
    compared = compare(runs, baseline)
    rows = [
        (
            name,
            _counted(own),
            *_level(bits_per_byte(own)),
            *(_difference(compared.get(name)) if name != baseline else (NONE, NONE, "baseline")),
        )
        for name, own in runs.items()
    ]
    return Table(header, rows)


def training_loss(runs: Runs, baseline: str) -> Table:
    """The averaged loss at the end of training, and by how many percent of the baseline's it differs, seed by seed."""
    reference, found = trained(runs[baseline]), {name: trained(own) for name, own in runs.items()}
    seeds = list(reference)
    rows = [(name, *_relative(values, reference, seeds, name == baseline)) for name, values in found.items()]
    return Table(("variant", "bits per byte", *(f"seed {seed}" for seed in seeds), "difference", "95 % interval"), rows)


def _relative(values: dict[int, float], reference: dict[int, float], seeds: list[int], is_baseline: bool) -> tuple[str, ...]:
    if not values:
        return ("diverged", *(NONE for _ in range(len(seeds) + 2)))
    level = f"{fmean(values.values()):.3f}"
    if is_baseline:
        return (level, *(f"{values[seed]:.3f}" for seed in seeds), NONE, NONE)
    found = paired({seed: values[seed] / reference[seed] for seed in values if seed in reference}, dict.fromkeys(reference, 1.0))
    each = {} if found is None else found.differences
    interval = NONE if found is None or found.low is None or found.high is None else f"{percent(found.low)} to {percent(found.high)}"
    return (level, *(_percent(each.get(seed)) for seed in seeds), _percent(None if found is None else found.mean), interval)


def _percent(value: float | None) -> str:
    return NONE if value is None else percent(value)


def brief(runs: Runs, baseline: str) -> Table:
    """The same for a terminal."""
    header = ("variant", "runs", "bits per byte", "difference", "in words")
    compared = compare(runs, baseline)
    rows = []
    for name, own in runs.items():
        found = compared.get(name)
        difference, _, words = _difference(found) if name != baseline else (NONE, NONE, "baseline")
        if found is not None and found.high is not None:
            difference += f" \N{PLUS-MINUS SIGN} {found.high - found.mean:.3f}"
        rows.append((name, _counted(own), _level(bits_per_byte(own))[0], difference, words))
    return Table(header, rows)


def _counted(runs: Seeds) -> str:
    diverged = len(runs) - len(ended(runs))
    return f"{len(runs)}, {diverged} diverged" if diverged else str(len(runs))


def _level(values: Mapping[int, float]) -> tuple[str, str]:
    if not values:
        return "diverged", NONE
    spread = f"{min(values.values()):.3f} to {max(values.values()):.3f}" if len(values) > 1 else NONE
    return f"{fmean(values.values()):.3f}", spread


def _difference(found: Paired | None) -> tuple[str, str, str]:
    if found is None:
        return NONE, NONE, "nothing to compare"
    if found.low is None or found.high is None:
        return signed(found.mean), NONE, "one seed: nothing can be concluded"
    return signed(found.mean), f"{signed(found.low)} to {signed(found.high)}", WORDS[found.verdict]


def sizes(runs: Runs) -> Table:
    """What each variant is, and what it took here; figures of a machine are means over seeds."""
    header = (
        "variant",
        "parameters",
        "active",
        "of objectives",
        "FLOPs per token",
        "FLOPs in all",
        "cache per token",
        "tokens/s",
        "time",
        "memory",
    )
    return Table(header, [(name, *_size(own)) for name, own in runs.items()])


def _size(runs: Seeds) -> tuple[str, ...]:
    one = next(iter(runs.values())).summary
    every = [run.summary for run in ended(runs).values()] or [one]
    return (
        short(one.parameters),
        short(one.active_parameters),
        short(one.objective_parameters),
        short(one.flops_per_token),
        short(max(summary.flops for summary in every)),
        short(one.cache_bytes_per_token, "B"),
        f"{fmean(summary.tokens_per_second for summary in every):,.0f}",
        f"{fmean(summary.seconds for summary in every):,.0f} s",
        short(fmean(summary.peak_memory for summary in every), "B"),
    )


def equal_budgets(tokens: Reading, flops: Reading, baseline: str) -> Table:
    """Every variant at the same tokens and at the same FLOPs."""
    header = (
        "variant",
        f"bits per byte at {short(tokens.budget)} tokens",
        "difference",
        "95 % interval",
        f"bits per byte at {short(flops.budget)} FLOPs",
        "difference",
        "95 % interval",
    )
    return Table(header, [(name, *_read(tokens, name, baseline), *_read(flops, name, baseline)) for name in tokens.values])


def _read(reading: Reading, name: str, baseline: str) -> tuple[str, str, str]:
    value = mean(reading.values[name])
    if value is None:
        return "diverged", NONE, NONE
    compared = paired(reading.values[name], reading.values[baseline]) if name != baseline else None
    difference, interval, _ = _difference(compared)
    return f"{value:.3f}", difference, interval


def routing(runs: Runs) -> Table | None:
    """How evenly experts are used, and how often depths ahead agree; None where no variant has experts or predicts ahead."""
    depths = list(dict.fromkeys(key for own in runs.values() for key in agreements(own)))
    figure = ("max_vio", "max_vio_sequence")
    rows = [
        (
            name,
            *(_number(mean(figures(own, lambda summary, key=key: getattr(summary, key)))) for key in figure),
            _worst(own),
            *(_share(mean(figures(own, lambda summary, key=key: summary.agreement.get(key)))) for key in depths),
        )
        for name, own in runs.items()
    ]
    if all(set(row[1:]) == {NONE} for row in rows):
        return None
    header = ("variant", "MaxVio", "within a sequence", "worst layer", *(f"agreement of {key}" for key in depths))
    return Table(header, rows)


def _worst(runs: Seeds) -> str:
    found = [max(line.max_vio.values()) for run in ended(runs).values() if (line := last_with(run, "max_vio"))]
    return _number(fmean(found) if found else None)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"
