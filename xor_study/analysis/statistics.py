"""Intervals and tests of proportions, paired differences and shares of variance.

SciPy's statistics take half a second to import, more than a whole sweep does, so the functions that need them import
them. Wilson's interval and Holm's correction, which every printed table uses, are written out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: intervals are 95 % intervals."""

SIGNIFICANT = 0.01
"""The p below which a difference counts."""


@cache  # a table of cells asks thousands of times for the same few counts
def wilson(successes: int, trials: int, comparisons: int = 1) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a proportion (Wilson 1927); of no trials, (0, 1).

    Args:
        successes: how many.
        trials: of how many.
        comparisons: if more than 1, the interval is one of so many that hold together with 95 % (Bonferroni).

    Example:
        >>> wilson(5, 10)
        (0.236593090512564, 0.7634069094874361)
    """
    low, high = wilson_intervals([successes], [trials], comparisons)
    return float(low[0]), float(high[0])


def wilson_intervals(
    successes: ArrayLike, trials: ArrayLike, comparisons: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of Wilson's intervals of many proportions, both of shape (proportions,); see `wilson`.

    Args:
        successes: shape (proportions,).
        trials: shape (proportions,).
        comparisons: if more than 1, each interval is one of so many that hold together with 95 % (Bonferroni).
    """
    count, total = np.asarray(successes, np.int64), np.asarray(trials, np.int64)
    z = Z if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)
    n, square = np.maximum(total, 1), z * z
    share = count / n
    denominator = 1 + square / n
    center = (share + square / (2 * n)) / denominator
    distance = z * np.sqrt(share * (1 - share) / n + square / (4 * n**2)) / denominator
    # Rounding can leave the ends a hair inside 0 and 1 where the formula gives exactly these.
    return np.where(count > 0, center - distance, 0.0), np.where(count < total, center + distance, 1.0)


def two_samples(successes: tuple[int, int], trials: tuple[int, int]) -> float:
    """Return the two-sided p-value of Fisher's exact test that two independent samples have the same proportion.

    Args:
        successes: in each sample.
        trials: the sizes of the samples.
    """
    from scipy.stats import fisher_exact

    failures = tuple(n - k for k, n in zip(successes, trials, strict=True))
    return float(fisher_exact([successes, failures]).pvalue)


def paired(first: ArrayLike, second: ArrayLike) -> float:
    """Return the p-value of McNemar's exact test that two binary outcomes of the same seeds are equally frequent.

    Args:
        first: booleans of shape (pairs,).
        second: of the same seeds in the same order.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    return float(mcnemar((one & ~other).sum(), (~one & other).sum()))


def mcnemar(only_first: ArrayLike, only_second: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values of McNemar's exact tests of many tables, of the shape of both arguments.

    Args:
        only_first: how many pairs have the outcome in the first run only.
        only_second: likewise.
    """
    from scipy.stats import binom

    total = np.add(only_first, only_second)
    # Twice the probability of the smaller tail counts the middle twice where both are equally frequent.
    return np.asarray(np.minimum(1.0, 2 * binom.cdf(np.minimum(only_first, only_second), total, 0.5)))


class Effect(NamedTuple):
    """A difference, the ends of its 95 % interval, and the p-value that there is none.

    Of no pairs nothing is known: the value is NaN, the interval holds all that is possible, p is 1.
    """

    value: float
    low: float
    high: float
    p: float


def paired_difference(first: ArrayLike, second: ArrayLike) -> Effect:
    """Return by how much the share of `second` exceeds that of `first`, binary outcomes of the same seeds.

    The interval is Newcombe's hybrid of two Wilson intervals (Newcombe 1998, Statistics in Medicine 17, 2635, method
    10), which also holds where no pair differs; the p-value is McNemar's.

    Args:
        first: booleans of shape (pairs,).
        second: of the same seeds in the same order.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    if not len(one):
        return Effect(math.nan, -1.0, 1.0, 1.0)
    both, only_one, only_other = (np.atleast_1d(mask.sum()) for mask in (one & other, one & ~other, ~one & other))
    return Effect(*(float(ends[0]) for ends in paired_differences(both, only_one, only_other, [len(one)])))


def paired_differences(
    both: ArrayLike, only_first: ArrayLike, only_second: ArrayLike, pairs: ArrayLike
) -> tuple[NDArray[np.float64], ...]:
    """Return many paired differences from their counts: values, ends of the intervals and p; see `paired_difference`.

    Args:
        both: how many pairs have the outcome in both runs, shape (differences,).
        only_first: in the first run only, likewise.
        only_second: in the second run only.
        pairs: how many there are, at least one.

    Returns:
        four arrays of shape (differences,).
    """
    first, second, n = np.add(both, only_first), np.add(both, only_second), np.asarray(pairs)
    neither = n - first - np.asarray(only_second)
    product = (first * (n - first)).astype(float) * (second * (n - second))  # as floats: whole numbers would overflow
    cross = np.multiply(both, neither) - np.multiply(only_first, only_second).astype(float)
    # Newcombe's continuity correction of phi, for positive association only.
    cross = np.where(cross > 0, np.maximum(cross - n / 2, 0), cross)
    phi = np.divide(cross, np.sqrt(product), out=np.zeros(len(n)), where=product > 0)
    (low_1, high_1), (low_2, high_2) = wilson_intervals(first, n), wilson_intervals(second, n)
    p_1, p_2 = first / n, second / n

    def spread(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.maximum(a * a - 2 * phi * a * b + b * b, 0)))

    value = p_2 - p_1
    low, high = value - spread(p_2 - low_2, high_1 - p_1), value + spread(high_2 - p_2, p_1 - low_1)
    return value, low, high, mcnemar(only_first, only_second)


def paired_shift(first: ArrayLike, second: ArrayLike) -> Effect:
    """Return the median of `second` - `first`, numbers of the same seeds.

    The interval is a percentile bootstrap (10,000 resamples, fixed seed), the p-value Wilcoxon's signed-rank test.

    Args:
        first: numbers of shape (pairs,).
        second: of the same seeds in the same order.
    """
    from scipy.stats import bootstrap, wilcoxon

    difference = np.asarray(second, float) - np.asarray(first, float)
    if not len(difference):
        return Effect(math.nan, -math.inf, math.inf, 1.0)
    median = float(np.median(difference))
    # Equal differences need no bootstrap, and Wilcoxon's test is undefined where all are 0.
    if (difference == difference[0]).all():
        return Effect(median, median, median, 1.0 if median == 0 else float(wilcoxon(difference).pvalue))
    # Percentiles, not BCa: the jackknife of a median of whole numbers with ties can be degenerate.
    result = bootstrap((difference,), np.median, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0))
    ends = result.confidence_interval
    return Effect(median, float(ends.low), float(ends.high), float(wilcoxon(difference).pvalue))


def mean_contrasts(values: ArrayLike, largest: float = 1.0) -> tuple[NDArray[np.float64], ...]:
    """Return the means of contrasts over seeds, the ends of their 95 % intervals, and the p-values that they are 0.

    Student's t over the seeds, which are what is drawn at random: cells that share a seed are not independent. Where
    all seeds agree, which leaves no variance to estimate, the interval allows for Wilson's bound on the share of seeds
    that don't. No p-value is below that of a sign test in which all seeds agree.

    Args:
        values: a contrast of each seed, shape (seeds, contrasts), of two seeds or more.
        largest: that a contrast can be, in either direction.

    Returns:
        four arrays of shape (contrasts,).

    Example:
        >>> [end.round(3).tolist() for end in mean_contrasts([[0.5, 0.0], [0.7, 0.0], [0.6, 0.0]])]
        [[0.6, 0.0], [0.352, -0.561], [0.848, 0.561], [0.25, 1.0]]
    """
    from scipy.stats import t as student

    contrasts = np.asarray(values, float)
    seeds, mean = len(contrasts), contrasts.mean(0)
    agree = (contrasts == contrasts[0]).all(0)
    error = np.where(agree, math.inf, contrasts.std(0, ddof=1) / math.sqrt(seeds))
    half = error * student.ppf(0.975, seeds - 1)
    unlike = wilson(0, seeds)[1]
    low = np.where(agree, mean - unlike * (largest + mean), np.maximum(mean - half, -largest))
    high = np.where(agree, mean + unlike * (largest - mean), np.minimum(mean + half, largest))
    p = np.where(agree, 0.0, 2 * student.sf(np.abs(mean) / error, seeds - 1))
    return mean, low, high, np.where(mean == 0, 1.0, np.maximum(p, 0.5 ** (seeds - 1)))


def difference_over_levels(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a mean difference whose levels are a sample as well as its units.

    Percentiles of a bootstrap that draws levels and units independently (10,000 resamples, fixed seed): the interval
    answers what other levels of the same kind would have shown.

    Args:
        first: booleans of shape (levels, units).
        second: of the same levels and units.

    Raises:
        ValueError: if there are fewer than two levels.
    """
    difference = np.asarray(second, float) - np.asarray(first, float)
    levels, units = difference.shape
    if levels < 2:
        raise ValueError("an interval over levels needs at least two of them")
    rng = np.random.default_rng(0)
    by_level, by_unit = (rng.multinomial(size, np.full(size, 1 / size), 10_000) / size for size in (levels, units))
    means = np.einsum("rl,rl->r", by_level @ difference, by_unit)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def decomposition(
    table: pd.DataFrame, factors: Sequence[str], outcome: str, unit: str, resamples: int = 1000
) -> pd.DataFrame:
    """Return which share of the variance of an outcome's mean each factor and each pair of factors explains.

    The shares are those of a balanced factorial analysis of variance of the cells' means: main effects, two-way
    interactions, and all higher ones as "higher order"; they add up to 1. Intervals are percentiles of a bootstrap over
    the units, which all cells share (fixed seed).

    Args:
        table: a row for each run.
        factors: its columns that span the cells; every combination must be there with the same units.
        outcome: the column that is averaged over the units.
        unit: the column that pairs the cells, such as "seed".
        resamples: of the bootstrap.

    Returns:
        Columns term, share, low and high, the largest share first.

    Raises:
        ValueError: if the design is not complete.
    """
    terms = [(i,) for i in range(len(factors))] + list(itertools.combinations(range(len(factors)), 2))
    values = _design(table, factors, outcome, unit)
    result = _with_intervals(values, lambda means: _shares(means, terms), resamples)
    result.insert(0, "term", [" x ".join(factors[i] for i in term) for term in terms] + ["higher order"])
    return result.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def total_shares(
    table: pd.DataFrame, factors: Sequence[str], outcome: str, unit: str, resamples: int = 1000
) -> pd.DataFrame:
    """Return which share of the variance of an outcome's mean each factor takes part in, alone or with any others.

    The total index of Homma & Saltelli 1996: what would vanish if the factor were fixed. The shares add up to more than
    1, since an interaction counts for each of its factors. See `decomposition` for the arguments and intervals.

    Returns:
        Columns factor, share, low and high, the largest share first.

    Raises:
        ValueError: if the design is not complete.
    """

    def shares(means: NDArray[np.float64]) -> NDArray[np.float64]:
        total = float(means.var())
        return np.array([means.var(axis=i).mean() / total if total > 0 else 0.0 for i in range(means.ndim)])

    result = _with_intervals(_design(table, factors, outcome, unit), shares, resamples)
    result.insert(0, "factor", list(factors))
    return result.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _design(table: pd.DataFrame, factors: Sequence[str], outcome: str, unit: str) -> NDArray[np.float64]:
    """Return the outcomes of a complete design, shape (units, levels of the first factor, ...)."""
    wide = table.pivot(index=unit, columns=list(factors), values=outcome)
    levels = [len(table[factor].unique()) for factor in factors]
    if wide.empty or wide.isna().to_numpy().any() or wide.shape[1] != int(np.prod(levels)):
        raise ValueError("the design is not complete: a combination of factors is missing")
    return wide.sort_index(axis=1).to_numpy(float).reshape(len(wide), *levels)


def _with_intervals(
    values: NDArray[np.float64], shares: Callable[[NDArray[np.float64]], NDArray[np.float64]], resamples: int
) -> pd.DataFrame:
    """Return shares of the means over the units with bootstrap intervals: columns share, low, high."""
    units = len(values)
    rng = np.random.default_rng(0)
    # Whole seeds are resampled, the same in every cell: cells that share a seed are not independent.
    weights = rng.multinomial(units, np.full(units, 1 / units), size=resamples) / units
    resampled = np.array([shares(np.tensordot(weight, values, 1)) for weight in weights])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return pd.DataFrame({"share": shares(values.mean(0)), "low": low, "high": high})


def _shares(means: NDArray[np.float64], terms: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """Return the share of the sum of squares of each term, and last of all that they leave."""
    effects: dict[tuple[int, ...], Any] = {(): means.mean()}
    total, squares = float(((means - effects[()]) ** 2).mean()), []
    for term in terms:
        others = tuple(i for i in range(means.ndim) if i not in term)
        marginal = means.mean(axis=others, keepdims=True)
        # All terms that this one contains, the grand mean () among them, are subtracted from its marginal means.
        parts = [part for size in range(len(term)) for part in itertools.combinations(term, size)]
        effects[term] = marginal - sum(effects[part] for part in parts)
        squares.append(float((effects[term] ** 2).mean()))
    shares = np.array(squares) / total if total > 0 else np.zeros(len(terms))
    return np.append(shares, 1 - shares.sum() if total > 0 else 0.0)


def holm(values: ArrayLike) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979).

    Example:
        >>> holm([0.5, 0.25, 0.125])
        [0.5, 0.5, 0.375]
    """
    p = np.asarray(values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()  # type: ignore[no-any-return]  # NumPy's stub says Any
