"""Intervals and tests, from statsmodels and scipy, in the few forms that the study uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import fisher_exact, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a proportion (Wilson 1927)."""
    low, high = proportion_confint(successes, trials, alpha=1 - LEVEL, method="wilson")
    return (float(low) if successes else 0.0, float(high) if successes < trials else 1.0)


def two_samples(successes: tuple[int, int], trials: tuple[int, int]) -> float:
    """Return the p-value of Fisher's exact test that two independent samples have one proportion, two-sided."""
    failures = tuple(n - k for k, n in zip(successes, trials, strict=True))
    return float(fisher_exact([successes, failures]).pvalue)


def paired(first: ArrayLike, second: ArrayLike) -> float:
    """Return the p-value of McNemar's exact test that two binary outcomes of the same seeds are equally frequent."""
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    table = [
        [int((one & other).sum()), int((one & ~other).sum())],
        [int((~one & other).sum()), int((~one & ~other).sum())],
    ]
    return float(mcnemar(table, exact=True).pvalue)


def paired_difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float]:
    """Return how much more frequent a binary outcome is in the second of two paired samples, and its interval's ends.

    The interval is Wald's with one added to both discordant counts (Bonett & Price 2012, Statistics in Medicine 31).
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    gained, lost, pairs = int((other & ~one).sum()), int((one & ~other).sum()), len(one)
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    return (gained - lost) / pairs, max(-1.0, float(up - down - half)), min(1.0, float(up - down + half))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979)."""
    return [float(value) for value in multipletests(values, method="holm")[1]] if len(values) else []
