"""Numbers in words, for the sentences of claims: a sentence says nothing that other data would not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd


def of(count: int, n: int) -> str:
    """Return "3 of 10", "none of 10" or "all 10"."""
    if count and count == n:
        return f"all {n:,}"
    return f"{count:,} of {n:,}" if count else f"none of {n:,}"


def total(cells: pd.DataFrame, outcome: str) -> str:
    """Return how many runs of some cells had an outcome."""
    return of(int(cells[f"{outcome}_runs"].sum()), int(cells["n"].sum()))


def percent(share: Any) -> str:
    """Return a share as a percentage of three digits."""
    return f"{100 * share:.3g} %"


def more(difference: float) -> str:
    """Return a difference of shares as "5 % more runs than"."""
    if not difference:
        return "as many runs as"
    return f"{percent(abs(difference))} {'fewer' if difference < 0 else 'more'} runs than"


def later(steps: float) -> str:
    """Return a difference of steps as "120 steps earlier than"."""
    if math.isnan(steps):
        return "at a time that can't be compared with"
    if not steps:
        return "as soon as"
    return f"{abs(steps):,.0f} steps {'earlier' if steps < 0 else 'later'} than"


def rates(chosen: pd.Series[float], tried: pd.Series[float]) -> str:
    """Return some of the rates that were tried in words: as a range only if it leaves none of them out."""
    values = sorted(set(chosen))
    if not values:
        return "at no rate"
    if len(values) == 1 or len(values) < tried[tried.between(values[0], values[-1])].nunique():
        return f"at {', '.join(f'{rate:g}' for rate in values)}"
    return f"from {values[0]:g} on" if values[-1] == tried.max() else f"from {values[0]:g} to {values[-1]:g}"


def plural(count: int, noun: str) -> str:
    """Return "1 rate" or "3 rates"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"; "none" of no items."""
    return " and ".join([*([", ".join(items[:-1])] if items[:-1] else []), *items[-1:]]) or "none"
