"""Which expert lies on which rank, by the load that was measured: busy experts get copies, and ranks equal work.

As DeepSeek-V3 places experts for inference (technical report, section 3.4; the EPLB repository), in three greedy steps:

1. Where groups divide evenly among nodes, each node gets as many groups, the busiest group first to the idlest node, so that
   node-limited routing finds a group on one node. Else all ranks count as one node of one group.
2. Within a node, the expert with the most load for each of its copies gets one copy more, until all slots are taken.
3. Within a node, the busiest copy goes first to the idlest rank that has a slot left. A copy has an equal share of its expert's load.

    >>> place_experts([10, 2, 2, 2], ranks=2, slots=6).experts
    (0, 0, 3, 0, 1, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from ..errors import BestiaryError


@dataclass(frozen=True)
class Placement:
    """The expert of every slot, rank after rank; every rank has as many slots."""

    experts: tuple[int, ...]
    ranks: int

    @property
    def by_rank(self) -> list[tuple[int, ...]]:
        """The experts of each rank."""
        each = len(self.experts) // self.ranks
        return [self.experts[start : start + each] for start in range(0, len(self.experts), each)]

    def copies(self) -> list[int]:
        """Of every expert."""
        return [self.experts.count(expert) for expert in range(max(self.experts) + 1)]

    def loads(self, load: Sequence[float]) -> list[float]:
        """What every rank has to do, where experts have these loads."""
        copies = self.copies()
        return [sum(load[expert] / copies[expert] for expert in held) for held in self.by_rank]

    def balancedness(self, load: Sequence[float]) -> float:
        """The mean rank's load as a part of the busiest one's: 1 where all have equal work."""
        loads = self.loads(load)
        return sum(loads) / len(loads) / max(loads) if max(loads) else 1.0


def in_order(experts: int, ranks: int) -> Placement:
    """Neighbours on one rank, each once: where experts lie in training. `ranks` divides `experts`."""
    return Placement(tuple(range(experts)), ranks)


def place_experts(load: Sequence[float], *, ranks: int, slots: int | None = None, groups: int = 1, nodes: int = 1) -> Placement:
    """A placement of experts for a measured load.

    Args:
        load: of every expert, in any unit.
        ranks: that share the experts.
        slots: on all ranks together, at least one for each expert; those beyond hold copies. As many as experts by default.
        groups: of neighbouring experts, within which a token's experts are limited.
        nodes: of neighbouring ranks.

    Raises:
        BestiaryError: numbers that do not divide, with the nearest that do.
    """
    experts = len(load)
    count = experts if slots is None else slots
    _check(experts, count, ranks, groups, nodes)
    if groups % nodes:
        groups = nodes = 1
    size = experts // groups
    held = _pack([sum(load[group * size : (group + 1) * size]) for group in range(groups)], nodes)
    found: list[int] = []
    for mine in held:
        inside = list(chain.from_iterable(range(group * size, (group + 1) * size) for group in mine))
        copied = _copied([load[expert] for expert in inside], count // nodes)
        times = [copied.count(place) for place in range(len(inside))]
        packs = _pack([load[inside[place]] / times[place] for place in copied], ranks // nodes)
        found += [inside[copied[copy]] for pack in packs for copy in pack]
    return Placement(tuple(found), ranks)


def _pack(weights: Sequence[float], packs: int) -> list[list[int]]:
    """Items in packs of equally many, each item, heaviest first, into the lightest pack that has room."""
    room = len(weights) // packs
    found: list[list[int]] = [[] for _ in range(packs)]
    if room == 1:
        return [[item] for item in range(packs)]
    total = [0.0] * packs
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        pack = min((pack for pack in range(packs) if len(found[pack]) < room), key=total.__getitem__)
        found[pack].append(item)
        total[pack] += weights[item]
    return found


def _copied(weights: Sequence[float], slots: int) -> list[int]:
    """The item of every slot: each once, then again whichever has the most weight for each of its copies."""
    found, copies = list(range(len(weights))), [1] * len(weights)
    while len(found) < slots:
        item = max(range(len(weights)), key=lambda item: weights[item] / copies[item])
        found.append(item)
        copies[item] += 1
    return found


def _check(experts: int, slots: int, ranks: int, groups: int, nodes: int) -> None:
    if slots < experts:
        raise BestiaryError(f"{slots} slots do not hold {experts} experts. Take at least {-(-experts // ranks) * ranks} on {ranks} ranks.")
    if slots % ranks:
        raise BestiaryError(f"{slots} slots do not divide among {ranks} ranks. The nearest: {_around(slots, ranks, experts)}.")
    if ranks % nodes:
        raise BestiaryError(f"{ranks} ranks do not divide among {nodes} nodes. Use one of {_divisors(ranks)} nodes.")
    if experts % groups:
        raise BestiaryError(f"{experts} experts do not divide into {groups} groups. Use one of {_divisors(experts)} groups.")


def _around(value: int, multiple: int, least: int) -> str:
    """The multiples next to a value, from `least` on."""
    below = value // multiple * multiple
    return " or ".join(str(n) for n in (below, below + multiple) if n >= least)


def _divisors(value: int) -> list[int]:
    return [n for n in range(1, value + 1) if value % n == 0]
