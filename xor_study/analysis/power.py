"""How many seeds it takes: widths of intervals, and differences that a paired comparison detects."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from xor_study.analysis.statistics import Z

POWER, ALPHA = 0.8, 0.05


def wilson_widths(successes: NDArray[np.int64], trials: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the widths of Wilson's 95 % intervals of proportions; see `statistics.wilson`.

    Example:
        >>> wilson_widths(np.array([5, 0]), np.array([10, 64])).round(3)
        array([0.527, 0.057])
    """
    share = successes / trials
    return 2 * Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4.0 * trials**2))


def wilson_trials(share: NDArray[np.float64], width: float) -> NDArray[np.int64]:
    """Return how many trials Wilson's 95 % interval of a proportion needs to be at most so wide.

    Args:
        share: the proportions that would be observed.
        width: above 0 and below 1.

    Example:
        >>> wilson_trials(np.array([0.0, 0.5]), 0.05)
        array([  73, 1533])
    """
    # width / 2 (n + z^2) = z sqrt(share (1 - share) n + z^2 / 4), squared, is quadratic in n.
    a = (width / 2) ** 2
    b = Z**2 * (2 * a - share * (1 - share))
    c = Z**4 * a - Z**4 / 4
    return np.ceil((-b + np.sqrt(b**2 - 4 * a * c)) / (2 * a)).astype(np.int64)


def detectable_difference(pairs: int, comparisons: int = 1) -> float | None:
    """Return the smallest difference of two shares that McNemar's exact test detects with 80 % power at p < 0.05.

    The shares lie around one half, and the two outcomes of a pair are independent: of all cases with this difference,
    that with the most pairs that differ by chance. Pairs that mostly agree make smaller differences detectable.

    Args:
        pairs: of outcomes.
        comparisons: of which this one is the most significant, after Holm's correction.

    Returns:
        a number in (0, 1], or None if so few pairs detect nothing.

    Example:
        >>> round(detectable_difference(400), 3)
        0.102
    """
    if _power(1.0, pairs, ALPHA / comparisons) < POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, pairs, ALPHA / comparisons) >= POWER else (middle, high)
    return high


def _power(difference: float, pairs: int, alpha: float) -> float:
    """Return the probability that McNemar's exact test finds a difference of independent shares around one half."""
    from scipy.stats import binom

    one, other = 0.5 + difference / 2, 0.5 - difference / 2
    discordant = one * (1 - other) + other * (1 - one)
    spread = 8 * math.sqrt(pairs * discordant * (1 - discordant)) + 2
    middle = pairs * discordant
    number = np.arange(max(0, int(middle - spread)), min(pairs, math.ceil(middle + spread)) + 1)
    # The largest smaller count that is significant: twice its tail is at most alpha; -1 where none is.
    most = binom.ppf(alpha / 2, number, 0.5)
    most = np.where(2 * binom.cdf(most, number, 0.5) > alpha, most - 1, most)
    share = one * (1 - other) / discordant
    found = binom.cdf(most, number, share) + binom.sf(number - most - 1, number, share)
    return float((binom.pmf(number, pairs, discordant) * found).sum())
