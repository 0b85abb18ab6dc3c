"""The table of what variants would cost."""

from __future__ import annotations

from ..units import percent, short
from .full_scale import FullScale, Large
from .tables import NONE, Table


def costs(scale: FullScale) -> Table:
    """Estimated GPU hours and money of every variant, as it is and at full scale."""
    header = (
        "variant",
        "GPU time as here",
        "at full scale: parameters",
        "active",
        "FLOPs per token",
        "tokens",
        "GPU hours",
        "cost",
        "difference",
    )
    first = next(iter(scale.large.values()))
    assert isinstance(first, Large), "a study whose baseline does not fit the large model does not load"
    rows = []
    for name, own in scale.own.items():
        here = f"{_hours(own.hours)}{_money(own.money, ', ')}"
        large = scale.large[name]
        there = _there(large, first) if isinstance(large, Large) else ("does not apply", *[NONE] * 6)
        rows.append((name, here, *there))
    return Table(header, rows)


def _there(large: Large, first: Large) -> tuple[str, ...]:
    cost = large.cost
    return (
        short(large.parameters),
        short(large.active_parameters),
        short(cost.flops_per_token),
        short(cost.tokens),
        _hours(cost.hours),
        _money(cost.money) or NONE,
        NONE if large is first else percent(cost.hours / first.cost.hours - 1),
    )


def notes(scale: FullScale) -> list[str]:
    """What matching chose at full scale, and why a variant is not there."""
    found = []
    for name, large in scale.large.items():
        if not isinstance(large, Large):
            found.append(f"{name} does not apply at full scale: {'; '.join(str(problem) for problem in large.problems)}")
        elif large.matched:
            found.append(f"{name} at full scale: {large.matched}.")
    return found


def _hours(value: float) -> str:
    return f"{value:,.0f} h" if value >= 100 else f"{value:.3g} h" if value >= 0.01 else f"{3600 * value:.2g} s"


def _money(value: float | None, before: str = "") -> str:
    if value is None:
        return ""
    return f"{before}${value / 1e6:,.3f}M" if value >= 1e6 else f"{before}${value:,.2f}" if value >= 0.01 else ""
