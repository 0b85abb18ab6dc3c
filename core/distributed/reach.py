"""How many ranks, or nodes, have experts of one token: what node-limited routing bounds, and how often a token travels.

Experts lie in equal ranges of neighbours, and so do groups: with as many groups as nodes, a group is a node's (DeepSeek-V3, section 2.1.2).
"""

from __future__ import annotations

from math import comb

from ..manifest import Manifest, nested


def expert_groups(manifest: Manifest, layer: int) -> tuple[int, int]:
    """Groups of experts in a layer, and how many of them a token may use, by their published names; blocks of objectives are like the
    last layer."""
    part = manifest.layers[min(layer, len(manifest.layers) - 1)].ffn
    options = [inner.options for _, inner in nested(part) if hasattr(inner.options, "n_group")]
    return next(((getattr(found, "n_group"), getattr(found, "topk_group", 1)) for found in options), (1, 1))  # noqa: B009


def expected_reach(experts: int, k: int, places: int, *, groups: int = 1, kept: int = 1) -> float:
    """The mean number of places with experts of one token, where all choices are equally likely.

    Args:
        experts: that lie in equal ranges on the places.
        k: of them for each token.
        places: ranks or nodes.
        groups: of experts.
        kept: groups in which a token finds its experts.

    >>> round(expected_reach(256, 8, 8, groups=8, kept=4), 2), round(expected_reach(256, 8, 8), 2)
    (3.63, 5.29)
    """
    here, size = experts // places, experts // groups
    ways, total = comb(kept * size, k), comb(groups, kept)
    missed = 0.0
    for place in range(places):
        shared = [_overlap(place * here, here, group * size, size) for group in range(groups)]
        missed += sum(count * comb(kept * size - inside, k) for inside, count in _inside(shared, kept).items()) / ways / total
    return places - missed


def _overlap(start: int, length: int, other: int, size: int) -> int:
    return max(0, min(start + length, other + size) - max(start, other))


def _inside(shared: list[int], kept: int) -> dict[int, int]:
    """In how many choices of groups how many experts of a place are among those to choose from."""
    found = {(0, 0): 1}
    for overlap in shared:
        for (picked, inside), count in list(found.items()):
            if picked < kept:
                found[picked + 1, inside + overlap] = found.get((picked + 1, inside + overlap), 0) + count
    return {inside: count for (picked, inside), count in found.items() if picked == kept}
