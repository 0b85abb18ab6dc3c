"""How many GPUs do what: `pp=16,ep=64,zero=1`, checked against a model before anything is counted.

GPUs = pp * tp * dp        ep divides dp * tp: the experts of a stage lie on `ep` of its ranks, dp * tp / ep times over
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import BestiaryError, Problem, suggest
from ...core.manifest import Manifest
from ...core.weights import Entry
from .schedules import Schedule

KEYS = {
    "pp": "pipeline ranks",
    "tp": "ranks that share a matrix",
    "dp": "ranks with data of their own",
    "ep": "ranks that share the experts",
    "zero": "what data-parallel ranks share: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too",
}
PLACE = "--layout"


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism; `Layout(dp=8)` is plain data parallelism that shares optimizer states."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    ep: int = 1
    zero: int = 1

    @property
    def gpus(self) -> int:
        return self.pp * self.tp * self.dp

    def __str__(self) -> str:
        return ",".join(f"{key}={getattr(self, key)}" for key in KEYS)


def parse_layout(text: str, gpus: int) -> Layout:
    """`pp=16,ep=64,zero=1` on so many GPUs; `dp` is what remains when it is not said.

    Raises:
        BestiaryError: keys or values that there are not, or degrees that do not multiply to the GPUs.
    """
    given: dict[str, int] = {}
    problems: list[Problem] = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, _, value = item.partition("=")
        if key not in KEYS:
            problems.append(Problem(f"there is no '{key}' in a layout.", PLACE, suggest(key, KEYS)))
        elif not value.isdecimal() or (int(value) < 1 and key != "zero") or (key == "zero" and int(value) > 3):
            problems.append(Problem(f"{item}: expected {'0 to 3' if key == 'zero' else 'a number of ranks'} ({KEYS[key]}).", PLACE))
        else:
            given[key] = int(value)
    if problems:
        raise BestiaryError(*problems)
    return Layout(**_with_dp(given, gpus))


def _with_dp(given: dict[str, int], gpus: int) -> dict[str, int]:
    pp, tp = given.get("pp", 1), given.get("tp", 1)
    if gpus % (pp * tp):
        changed = "pp" if gpus % tp == 0 else "tp"
        valid = nearest(given.get(changed, 1), gpus // (tp if changed == "pp" else math.gcd(pp, gpus)))
        fact = f"pp * tp = {pp * tp} does not divide {gpus} GPUs."
        raise BestiaryError(Problem(fact, PLACE, f"The nearest that does: {changed}={valid}."))
    dp = gpus // (pp * tp)
    if given.get("dp", dp) != dp:
        fact = f"pp * tp * dp = {pp * tp * given['dp']}, and there are {gpus} GPUs."
        raise BestiaryError(Problem(fact, PLACE, f"Set dp={dp}, or leave it out."))
    return given | {"dp": dp}


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
    sizes = {"num_attention_heads": manifest.model.num_attention_heads}
    for entry in entries:
        if entry.weight.shard in ("column", "row"):
            sizes[entry.name] = entry.weight.shape[0 if entry.weight.shard == "column" else -1]
    bad = [name for name, size in sizes.items() if size % layout.tp]
    if bad:
        more = f", nor {len(bad) - 1} others" if len(bad) > 1 else ""
        valid = nearest(layout.tp, math.gcd(layout.gpus // layout.pp, *sizes.values()))
        yield f"tp={layout.tp} does not divide {bad[0]} = {sizes[bad[0]]}{more}.", f"The nearest: tp={valid}."


def nearest(wanted: int, of: int) -> int:
    """The divisor of `of` that is nearest to `wanted` as a factor.

    >>> nearest(15, 2048)
    16
    """
    divisors = [n for n in range(1, of + 1) if of % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))
