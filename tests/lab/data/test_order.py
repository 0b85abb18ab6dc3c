"""The order of rows."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bestiary.lab.data.order import Order


@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_pass_is_a_permutation(rows, seed):
    read = Order(rows, seed).take(0, 2 * rows)
    assert sorted(read[:rows]) == list(range(rows))
    assert sorted(read[rows:]) == list(range(rows))


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 500), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_order_is_a_function_of_seed_and_position_alone(rows, seed, start, counts):
    """However the reading is divided, and by whichever object."""
    pieces, at = [], start
    for count in counts:
        pieces.append(Order(rows, seed).take(at, count))
        at += count
    whole = Order(rows, seed).take(start, sum(counts))
    assert np.concatenate(pieces).tolist() == whole.tolist()


def test_seeds_and_passes_differ():
    assert (Order(100, 1).take(0, 100) != Order(100, 2).take(0, 100)).sum() > 80
    read = Order(100, 1).take(0, 200)
    assert (read[:100] != read[100:]).sum() > 80


def test_small_permutations_are_all_equally_likely():
    """Chi-square of the 24 orders of four rows over 4,800 passes: 23 degrees of freedom, 49.7 at p = 0.001."""
    seen = Counter(tuple(Order(4, 7).take(4 * number, 4)) for number in range(4800))
    assert len(seen) == 24
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 49.7


def test_neighbours_are_parted_and_any_row_comes_anywhere():
    read = Order(10_000, 3).take(0, 10_000)
    assert abs(np.corrcoef(read, np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(read[:-1], read[1:])[0, 1]) < 0.04
    assert (np.abs(np.diff(read)) == 1).sum() < 12


def test_a_step_costs_no_memory_however_many_rows_there_are():
    order = Order(10**12, 0)
    tracemalloc.start()
    rows = order.take(3 * 10**12 - 4, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert len(set(rows.tolist())) == 8 and rows.min() >= 0 and rows.max() < 10**12
