"""Statistics against published numbers and against other programs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from xor_study.analysis.statistics import (
    decomposition,
    difference_over_levels,
    holm,
    paired,
    paired_difference,
    paired_shift,
    total_shares,
    two_samples,
    wilson,
)


def test_wilson_is_the_interval_of_its_formula() -> None:
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964."""
    z, p, n = 1.959963984540054, 31 / 200, 200
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert wilson(31, 200) == pytest.approx(ends)
    assert wilson(0, 400)[0] == 0
    assert wilson(400, 400)[1] == 1


@pytest.mark.parametrize("n", [*range(1, 41), 100, 400, 1000, 1064, 26_300, 324_900])
def test_wilson_is_equal_to_statsmodels_to_the_last_bit(n: int) -> None:
    counts = np.unique(np.linspace(0, n, 401).astype(int))
    low, high = proportion_confint(counts, np.full(len(counts), n), alpha=1 - 0.95, method="wilson")
    for count, ends in zip(counts.tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        assert wilson(count, n) == (ends[0] if count else 0, ends[1] if count < n else 1)


def test_holm_and_mcnemar_are_equal_to_statsmodels_to_the_last_bit() -> None:
    rng = np.random.default_rng(5)
    for n in range(1, 60):
        p = np.where(rng.random(n) < 0.3, 1.0, rng.random(n) ** 4)
        p[rng.random(n) < 0.2] = p[0]  # equal ones
        assert holm(p.tolist()) == multipletests(p, method="holm")[1].tolist()
        one, other = rng.random(3 * n) < 0.4, rng.random(3 * n) < 0.6
        table = [[(one & other).sum(), (one & ~other).sum()], [(~one & other).sum(), (~one & ~other).sum()]]
        assert paired(one, other) == mcnemar(table, exact=True).pvalue
    assert holm([]) == []


def test_fishers_test_of_the_lady_tasting_tea() -> None:
    """Fisher (1935): 3 of 4 cups right in both kinds has p = 34/70 two-sided."""
    assert two_samples((3, 1), (4, 4)) == pytest.approx(34 / 70)


def test_mcnemar_counts_discordant_pairs_only() -> None:
    """6 against 1 discordant pairs: 2 (C(7,0) + C(7,1)) / 2^7."""
    first = [True] * 6 + [False] + [True] * 20 + [False] * 9
    second = [False] * 6 + [True] + [True] * 20 + [False] * 9
    assert paired(first, second) == pytest.approx(2 * 8 / 128)


def test_holm_multiplies_by_what_is_left() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def table_2x2(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("counts", "ends"),
    [
        ((1, 1, 7, 12), (0.026, 0.507)),  # Bentur et al. 2009, in Fagerland, Lydersen & Laake 2014
        ((20, 12, 2, 16), (-0.3292, -0.0562)),  # Newcombe 1998
    ],
)
def test_newcombes_interval_of_published_tables(counts: tuple[int, ...], ends: tuple[float, float]) -> None:
    found = paired_difference(*table_2x2(*counts))
    assert (found.low, found.high) == pytest.approx(ends, abs=6e-4)
    assert found.value == (counts[2] - counts[1]) / sum(counts)


def test_a_difference_of_nothing_still_has_an_interval() -> None:
    """With no discordant pair it is as wide as Wilson's intervals of both allow, and McNemar has nothing to say."""
    found = paired_difference([False] * 400, [False] * 400)
    assert (found.value, found.p) == (0, 1)
    assert found.high == -found.low == pytest.approx(wilson(0, 400)[1])


def test_the_interval_of_a_difference_covers_it() -> None:
    """1,000 samples of 50 pairs with rates 0.6 and 0.75: 95 % of the intervals hold 0.15."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        shared = rng.random(50)
        first, second = shared < 0.6, np.where(rng.random(50) < 0.5, shared, rng.random(50)) < 0.75
        found = paired_difference(first, second)
        hits += found.low <= 0.15 <= found.high
    assert 0.93 < hits / 1000 < 0.985


def test_a_shift_is_found_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(100, 1000, 200).astype(float)
    found = paired_shift(first, first - 50 + rng.normal(0, 10, 200))
    assert found.low < -50 < found.high
    assert found.high - found.low < 6
    assert found.p < 1e-20
    assert paired_shift(first, first) == (0, 0, 0, 1)


def test_the_same_numbers_give_the_same_interval() -> None:
    difference = np.random.default_rng(3).normal(5, 2, 60)
    assert paired_shift(np.zeros(60), difference) == paired_shift(np.zeros(60), difference)


def test_shares_of_variance_are_those_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    rows = [
        {"a": a, "b": b, "c": c, "seed": seed, "y": float(rng.random() < 0.2 + 0.2 * a + 0.1 * a * b - 0.1 * c)}
        for a, b, c, seed in itertools.product(range(3), range(2), range(2), range(30))
    ]
    table = pd.DataFrame(rows)
    found = decomposition(table, ["a", "b", "c"], "y", "seed").set_index("term")
    cells = table.groupby(["a", "b", "c"], as_index=False)["y"].mean()
    squares = anova_lm(ols("y ~ (C(a) + C(b) + C(c)) ** 2", cells).fit())["sum_sq"]
    squares.index = [term.replace("C(", "").replace(")", "").replace(":", " x ") for term in squares.index]
    shares = squares.rename({"Residual": "higher order"}) / squares.sum()
    assert found["share"].reindex(shares.index).to_numpy() == pytest.approx(shares.to_numpy())
    assert found["share"].sum() == pytest.approx(1)
    assert (found["low"] <= found["high"]).all()
    with pytest.raises(ValueError, match="not complete"):
        decomposition(table[1:], ["a", "b", "c"], "y", "seed")


def test_simultaneous_intervals_are_those_of_a_smaller_error() -> None:
    from scipy.stats import binomtest

    for count, n, comparisons in ((3, 40, 7), (0, 100, 28), (100, 100, 2)):
        expected = binomtest(count, n).proportion_ci(1 - 0.05 / comparisons, method="wilson")
        assert wilson(count, n, comparisons) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_over_levels_is_as_wide_as_the_levels_differ() -> None:
    """One level of ten decides everything: over seeds the mean is certain, over levels it is not."""
    first, second = np.zeros((10, 200), bool), np.zeros((10, 200), bool)
    second[0] = True
    low, high = difference_over_levels(first, second)
    assert low == 0
    assert 0.2 <= high <= 0.4  # of ten draws of ten levels, two to four are the one
    same = difference_over_levels(first, ~first)
    assert same == pytest.approx((1.0, 1.0))
    with pytest.raises(ValueError, match="two"):
        difference_over_levels(first[:1], second[:1])


def test_total_shares_count_an_interaction_for_each_of_its_factors() -> None:
    """Of an exclusive or of two factors each takes part in all of the variance, a third in none."""
    rows = [
        {"a": a, "b": b, "c": c, "seed": seed, "y": a ^ b}
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1, 2)
        for seed in range(3)
    ]
    table = total_shares(pd.DataFrame(rows), ["a", "b", "c"], "y", "seed", resamples=20).set_index("factor")
    assert table["share"].to_dict() == {"a": 1.0, "b": 1.0, "c": 0.0}
    with pytest.raises(ValueError, match="complete"):
        total_shares(pd.DataFrame(rows[:0], columns=["a", "b", "c", "seed", "y"]), ["a", "b", "c"], "y", "seed")
    with pytest.raises(ValueError, match="complete"):
        total_shares(pd.DataFrame(rows[1:]), ["a", "b", "c"], "y", "seed")
