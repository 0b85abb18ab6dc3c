"""Expected reach of a token's copies, against all choices one by one."""

from __future__ import annotations

from itertools import combinations

import pytest

import bestiary
from bestiary.core.distributed.reach import expected_reach, expert_groups

SIZES = [(8, 2, 4), (8, 3, 2), (12, 2, 2), (12, 3, 6), (6, 2, 6)]
RULES = [(1, 1), (2, 1), (4, 2), (3, 2)]


@pytest.mark.parametrize(("experts", "k", "places", "groups", "kept"), [(*s, *r) for s in SIZES for r in RULES if s[0] % r[0] == 0])
def test_it_is_the_mean_over_all_choices(experts, k, places, groups, kept):
    size, here = experts // groups, experts // places
    reached = [
        len({expert // here for expert in chosen})
        for some in combinations(range(groups), kept)
        for chosen in combinations([expert for expert in range(experts) if expert // size in some], k)
    ]
    assert expected_reach(experts, k, places, groups=groups, kept=kept) == pytest.approx(sum(reached) / len(reached))


def test_groups_as_the_manifest_has_them():
    assert expert_groups(bestiary.resolve("deepseek-v3"), 61) == (8, 4)
    assert expert_groups(bestiary.resolve("deepseek-v3"), 0) == (1, 1)
