"""Intervals: the published quantiles of Student's t, differences by hand, and 2,000 simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bestiary.lab.studies.statistics import paired, t_probability, t_quantile

TABLE = {  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, two-sided
    (0.95, 1): 12.706,
    (0.95, 2): 4.303,
    (0.95, 3): 3.182,
    (0.95, 4): 2.776,
    (0.95, 9): 2.262,
    (0.95, 30): 2.042,
    (0.95, 100): 1.984,
    (0.90, 2): 2.920,
    (0.99, 2): 9.925,
    (0.99, 5): 4.032,
    (0.998, 4): 7.173,
}


@pytest.mark.parametrize(("level", "degrees"), TABLE, ids=str)
def test_quantiles_are_those_of_the_published_table(level, degrees):
    assert t_quantile(level, degrees) == pytest.approx(TABLE[level, degrees], abs=5.1e-4)


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.999])
def test_one_and_two_degrees_have_closed_forms(level):
    assert t_quantile(level, 1) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-12)
    assert t_quantile(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 41])
def test_the_probability_is_the_integral_of_the_density(degrees):
    def density(t):
        scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
        return scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)

    grid = np.linspace(0, 2.5, 20001)
    assert t_probability(2.5, degrees) == pytest.approx(2 * np.trapezoid(density(grid), grid), abs=1e-8)


def test_differences_by_hand():
    """Differences 0.01, 0.02, 0.06: mean 0.03, standard deviation sqrt(0.0007), half-width 4.30265 sqrt(0.0007 / 3)."""
    found = paired({0: 1.01, 1: 2.02, 2: 3.06}, {2: 3.0, 1: 2.0, 0: 1.0})
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx(0.03)
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(0.0007 / 3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert (found.seeds, found.verdict) == (3, "cannot tell")


def test_pairs_decide_what_levels_cannot():
    """Seeds differ by a whole unit, the variant by 0.01 from each of them."""
    baseline = {seed: float(seed) for seed in range(4)}
    better = paired({seed: value - 0.01 - seed / 1e4 for seed, value in baseline.items()}, baseline)
    worse = paired({seed: value + 0.01 + seed / 1e4 for seed, value in baseline.items()}, baseline)
    assert better and worse and (better.verdict, worse.verdict) == ("lower", "higher")


def test_one_seed_concludes_nothing_and_seeds_must_be_shared():
    one = paired({0: 1.0, 1: 5.0}, {0: 2.0})
    assert one is not None and one.seeds == 1
    assert (one.low, one.high, one.verdict) == (None, None, "nothing can be concluded")
    assert paired({1: 1.0}, {0: 2.0}) is None


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_truth_in_95_of_100_studies(seeds):
    """2,000 studies with a large effect of the seed, which pairs take out; three standard errors are 1.5 points."""
    random, truth, covered = np.random.default_rng(seeds), 0.02, 0
    for _ in range(2000):
        luck = random.normal(0, 1.0, seeds)
        baseline = dict(enumerate(luck))
        variant = dict(enumerate(luck + truth + random.normal(0, 0.01, seeds)))
        found = paired(variant, baseline)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_impossible_questions_are_refused():
    for level, degrees in ((0.0, 3), (1.0, 3), (0.95, 0)):
        with pytest.raises(ValueError, match="degree of freedom"):
            t_quantile(level, degrees)
