"""Figures of any sweep: the same curves, maps and bands as of the study, over the axes of the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from xor_study.figures import panels
from xor_study.figures.style import legend_below, level_styles, styled, subplots
from xor_study.figures.words import count_words, key_words, value_words

_OUTCOMES = {"solved": "(a) solved", "nonfinite": "(b) NaN"}


@styled()
def rate_curves(cells: pd.DataFrame, x: str, by: str | None) -> Figure:
    """Draw the shares of runs that solve XOR and that go to NaN over a setting, a line for each level of another.

    Args:
        cells: a row for each cell: columns x, by, n, and solved and nonfinite with _low and _high.
        x: key of the setting on the axis, a number above 0.
        by: key of the other setting; None: there is one line.
    """
    table, lines = _lines(cells, by)
    figure, both = subplots(2, 1, height=3.6 if by is None else 4.3, sharex=True)
    for axes, (outcome, title) in zip(both, _OUTCOMES.items(), strict=True):
        panels.share_curves(axes, table, x, outcome, lines)
        axes.set_title(title)
    both[0].set_title(f"(a) solved ({count_words(cells['n'])} a point; bands: 95 %)")
    panels.log_rates(both[1], cells[x])
    both[1].set_xlabel(key_words(x))
    if by is not None:
        legend_below(figure, both[0], 2, title=key_words(by))
    return figure


def _lines(table: pd.DataFrame, by: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a table with a column label, and the style of each label's line."""
    if by is None:
        return table.assign(label="all runs"), {"all runs": {"color": "black", "marker": "o"}}
    levels = list(dict.fromkeys(table[by]))
    names = [value_words(level, by) for level in levels]
    styles = dict(zip(names, level_styles(by, levels), strict=True))
    return table.assign(label=table[by].map(dict(zip(levels, names, strict=True)))), styles


@styled()
def heat_map(cells: pd.DataFrame, x: str, y: str) -> Figure:
    """Draw the shares of runs that solve XOR and that go to NaN as shades over two settings.

    Args:
        cells: a row for each cell: columns x, y, n, solved and nonfinite.
        x: key of the setting whose values go from left to right.
        y: key of the setting whose values go downwards.
    """
    ticks = {"x": _ticks(cells, x), "y": _ticks(cells, y)}
    rows = len(ticks["y"])
    figure, both = subplots(1, 2, height=min(1.5 + 0.14 * rows, 4.5), sharey=True)
    for axes, outcome in zip(both, _OUTCOMES, strict=True):
        mesh = panels.heat_map(axes, cells, x, y, outcome, ticks)
        panels.shares_bar(figure, mesh, [axes], outcome)
        axes.set_xlabel(key_words(x))
        longest = max(map(len, ticks["x"])) * len(ticks["x"])
        axes.tick_params(axis="x", labelsize=6, rotation=90 if longest > 24 else 0)
        axes.tick_params(axis="y", labelsize=6)
    both[0].set_ylabel(key_words(y))
    figure.suptitle(f"{count_words(cells['n'])} a cell (hatched: not run)", x=0.01, ha="left", fontsize=8)
    return figure


def _ticks(cells: pd.DataFrame, key: str) -> dict[str, Any]:
    """Return the values of a setting by their labels: numbers in their order, others as they come."""
    values = list(dict.fromkeys(cells[key]))
    if pd.api.types.is_numeric_dtype(cells[key]):
        values.sort()
    return {value_words(value, key): value for value in values}


@styled()
def loss_by_level(bands: Mapping[Any, pd.DataFrame], by: str, counts: Any) -> Figure:
    """Draw the loss over time: medians and quartiles of the runs whose loss is finite, for each level of a setting.

    Args:
        bands: columns step, low, median and high, by level.
        by: key of the setting.
        counts: how many runs each level has.
    """
    figure, axes = subplots(height=3.2)
    tables = {value_words(level, by): table for level, table in bands.items()}
    panels.loss_bands(axes, tables, level_styles(by, list(bands)))
    axes.set_title(f"{count_words(counts)} a line; bands: quartiles")
    axes.set_xlabel("step (median of runs still finite)")
    legend_below(figure, axes, 3, title=key_words(by))
    return figure


@styled()
def solved_by_level(survival: pd.DataFrame, by: str) -> Figure:
    """Draw the share of runs that have not solved XOR yet over the steps, for each level of a setting.

    Args:
        survival: columns setting (the level), n, step, unsolved, low and high.
        by: key of the setting.
    """
    figure, axes = subplots(height=3.2)
    levels = list(dict.fromkeys(survival["setting"]))
    labels = {level: value_words(level, by) for level in levels}
    panels.survival_curves(axes, survival, labels, level_styles(by, levels))
    axes.set_title(f"{count_words(survival['n'])} a line; bands: 95 % intervals")
    axes.set_xlabel("step (vertical bar: end of training)")
    legend_below(figure, axes, 3, title=key_words(by))
    return figure
