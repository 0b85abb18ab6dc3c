"""How a kernel is declared to the benchmark, and how it is checked and timed.

A module of this package has one function, `cases(device, small)`, that yields `Case`s one after another; it builds a case's inputs just
before it yields it, so that only one case's inputs are alive at a time. A case says

- `name`: the kernel and its shape, the kernel first: `product 4096x24576x7168`,
- `run`: the call that is timed, without arguments, inputs bound in it,
- `error`: a call that runs the kernel and says how far it is from a reference, by `relative_error` or `unequal`, or a measure of its own,
- `bound`: the largest error that is right,
- `nbytes` and `flops`: what must at least be moved and computed. The limit of the case is the longer of `nbytes` over the rate of copying
  memory and `flops` over the rate of products (`rate`: `bf16`, or `fp8` which is taken as twice that), both as measured on this card,
- `goal`: the share of that limit below which the kernel is not good enough,
- `peers`: other ways to compute the same, timed beside it.

    def cases(device: str, small: bool) -> Iterator[Case]:
        x = torch.randn(*((3, 70) if small else (8192, 7168)), device=device)
        yield Case("double", lambda: ours(x), lambda: relative_error(ours(x), 2 * x.double()), 1e-6, nbytes=8 * x.numel(), goal=0.75)

`small` cases are what the tests run without a GPU, in Triton's interpreter: a few thousand numbers, with sizes that no tile divides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Tensor


@dataclass
class Case:
    """One call to be checked and timed."""

    name: str
    run: Callable[[], object]
    error: Callable[[], float]
    bound: float
    nbytes: float = 0
    flops: float = 0
    rate: str = "bf16"
    goal: float | None = None
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass
class Row:
    """What was found for one case."""

    name: str
    error: float
    right: bool
    microseconds: float | None = None
    share: float | None = None
    """Of the card's limit."""
    goal: float | None = None
    peers: dict[str, float | str] = field(default_factory=dict)
    """Microseconds, or why there are none."""


def relative_error(found: Tensor, exact: Tensor) -> float:
    """`|found - exact| / |exact|` in the Frobenius norm, in slices, so that memory stays small."""
    wrong = right = 0.0
    for ours, theirs in zip(found.flatten().split(1 << 24), exact.flatten().split(1 << 24), strict=True):
        wrong += float((ours.double() - theirs.double()).square().sum())
        right += float(theirs.double().square().sum())
    return (wrong / right) ** 0.5 if right else wrong


def unequal(found: Tensor, expected: Tensor) -> int:
    """How many numbers differ in any bit."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    return int((found.contiguous().view(bits) != expected.contiguous().view(bits)).sum())


def limits(device: str) -> dict[str, float]:
    """Bytes per second of copying, and FLOPs per second of bf16 products, as measured here."""
    big = torch.empty(1 << 29, dtype=torch.int16, device=device)
    to = torch.empty_like(big)
    copy = 2 * big.nbytes / median(lambda: to.copy_(big)) * 1e6
    rates = []
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
        rates.append(2 * size**3 / median(lambda a=a, b=b: a @ b) * 1e6)
    return {"copy": copy, "bf16": max(rates), "fp8": 2 * max(rates)}


def median(call: Callable[[], object]) -> float:
    """Microseconds, with events and a cold L2 cache."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=100, return_mode="median")) * 1e3


def checked(case: Case) -> Row:
    """Whether a case is right."""
    error = case.error()
    return Row(case.name, error, error <= case.bound, goal=case.goal)


def wrong(cases: Iterable[Case]) -> list[str]:
    """The kernels, by the first word of their names, that have a wrong case."""
    return sorted({row.name.split()[0] for row in map(checked, cases) if not row.right})


def timed(case: Case, row: Row, card: dict[str, float]) -> None:
    """Fills in times and the share of the card's limit, that of memory or of products, whichever takes longer."""
    row.microseconds = median(case.run)
    row.share = max(case.nbytes / card["copy"], case.flops / card[case.rate]) * 1e6 / row.microseconds
    for name, call in case.peers.items():
        try:
            row.peers[name] = median(call)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            row.peers[name] = str(error).splitlines()[0][:100]


def report(row: Row) -> str:
    """One line."""
    line = f"{row.name:<44} {'ok' if row.right else 'WRONG':<6} {row.error:>9.2g}"
    if row.microseconds is None or row.share is None:
        return line
    goal = "" if row.goal is None else f" of {row.goal:.0%}"
    peers = ", ".join(f"{name} {value:.0f} us" if isinstance(value, float) else f"{name}: {value}" for name, value in row.peers.items())
    return f"{line} {row.microseconds:>10.1f} us {row.share:>7.0%}{goal:<7}  {peers}"


def table(rows: Iterable[Row], title: str) -> Table:
    """All of them: what is wrong, and what is below its goal, stands out."""
    found = Table("kernel", "error", "us", "of the limit", "goal", "peers, us", title=title)
    for row in rows:
        time, share = ("", "") if row.microseconds is None else (f"{row.microseconds:,.1f}", f"{row.share:.0%}")
        low = row.goal is not None and row.share is not None and row.share < row.goal
        peers = ", ".join(f"{name} {value:,.1f}" if isinstance(value, float) else f"{name}: {value}" for name, value in row.peers.items())
        error = f"{row.error:.2g}" if row.right else f"[red]WRONG {row.error:.2g}[/]"
        goal = "" if row.goal is None else f"{row.goal:.0%}"
        found.add_row(row.name, error, time, f"[yellow]{share}[/]" if low else share, goal, peers)
    return found
