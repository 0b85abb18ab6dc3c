"""How many ranks do what: `pp=16,ep=64,zero=1`.

ranks = pp * tp * dp       ep divides dp * tp: the experts of a stage lie on `ep` of its ranks, dp * tp / ep times over
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import BestiaryError, Problem, suggest
from .manifest import Manifest
from .table import entries
from .weights import Entry, Weight

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

    def workers(self, weight: Weight) -> int:
        """Ranks that share the products of a data rank's tokens with a parameter."""
        cut = weight.shard in ("column", "row") or (weight.shard == "expert" and self.ep > 1)
        return self.tp if cut else 1

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


def cut_units(entries: Iterable[Entry]) -> dict[str, int]:
    """What tensor parallelism divides, by parameter: heads where they stay whole, else rows or columns."""
    return {e.name: e.weight.shape[e.weight.cut_dim] // e.weight.unit for e in entries if e.weight.shard in ("column", "row")}


def expert_misfits(manifest: Manifest, ranks: int, ep: int) -> Iterator[str]:
    """What keeps `ep` of a stage's `ranks` from sharing a model's experts, as sentences with the degrees that are possible."""
    counts = sorted({e.weight.shape[0] for e in entries(manifest) if e.weight.shard == "expert"}) if ep > 1 else []
    if ep > 1 and not counts:
        yield f"ep = {ep}, and the model has no experts to share. Use ep = 1."
    bad = next((count for count in counts if count % ep), None)
    if bad is not None:
        yield f"ep = {ep} does not divide {bad} experts. Use one of {divisors(math.gcd(ranks, *counts))}."


def tensor_misfits(manifest: Manifest, tp: int) -> Iterator[str]:
    """What keeps `tp` ranks from sharing a model's matrices, as sentences with the degrees that are possible."""
    rows = [entry for entry in entries(manifest) if entry.weight.shard in ("column", "row")] if tp > 1 else []
    tile, units = manifest.precision.storage().tile, cut_units(rows)
    if rows and tile is None:
        yield f"precision '{manifest.precision.use}' has factors over whole rows or matrices, which tp = {tp} would cut. Use tp = 1."
        return
    valid = [n for n in divisors(math.gcd(*units.values())) if all(_fits(entry.weight, n, tile or 1) for entry in rows)]
    bad = [entry for entry in rows if not _fits(entry.weight, tp, tile or 1)]
    if bad:
        what = f"{units[bad[0].name]} {'heads' if bad[0].weight.unit > 1 else 'columns'} of {bad[0].name}"
        tiles = f" in tiles of {tile}" if tile != 1 else ""
        more = f", nor those of {len(bad) - 1} others" if len(bad) > 1 else ""
        yield f"tp = {tp} does not divide the {what}{tiles}{more}. Use one of {valid}."


def _fits(weight: Weight, tp: int, tile: int) -> bool:
    """Whether parts are whole units, and of quantised matrices whole tiles; one that is in one piece may have any size."""
    size, quantised = weight.shape[weight.cut_dim], weight.role == "linear" and tp > 1
    return size // weight.unit % tp == 0 and (not quantised or size // tp % tile == 0)


def divisors(of: int) -> list[int]:
    """All that divide `of`.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, of + 1) if of % n == 0]


def nearest(wanted: int, of: int) -> int:
    """The divisor of `of` that is nearest to `wanted` as a factor.

    >>> nearest(15, 2048)
    16
    """
    return min(divisors(of), key=lambda n: abs(math.log(n / wanted)))
