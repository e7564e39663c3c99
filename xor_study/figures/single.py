"""Figures of a single run, and of a single sweep."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from xor_study.analysis.statistics import wilson
from xor_study.figures.panels import draw_predictions
from xor_study.figures.style import COLUMN, GREY, NAN, error_bars, outcome_bar, outcome_legend, styled, subplots
from xor_study.figures.words import setting_words


@styled()
def loss_curve(history: pd.DataFrame, title: str, onset: int | None = None) -> Figure:
    """Draw the loss of one run over its steps: every step thin, the mean of each epoch thick.

    Args:
        history: columns step, epoch and loss.
        title: describes the run.
        onset: the first step at which anything is not finite: the gradient or the update may be so a step earlier than
            the loss. None: that of the loss.

    Example:
        >>> from xor_study import RunSpec, train
        >>> result = train(RunSpec(epochs=2, iterations=50), every_step=True)
        >>> loss_curve(result.history, "the article's network").axes[0].get_ylabel()
        'loss of the batch'
    """
    figure, axes = subplots(height=2.4)
    finite = history[np.isfinite(history["loss"])]
    axes.plot(finite["step"], finite["loss"], color=GREY, alpha=0.6, linewidth=0.4, label="each step")
    epochs = history.groupby("epoch")[["step", "loss"]].mean()
    # A mean over an epoch with NaN would be of its finite steps only.
    epochs = epochs[np.isfinite(history.groupby("epoch")["loss"].sum(skipna=False))]
    if len(epochs):
        marker = "o" if len(epochs) < 30 else ""
        axes.plot(epochs["step"], epochs["loss"], color="black", marker=marker, label="mean of an epoch")
    if len(finite) < len(history) or onset is not None:
        first = history.loc[~np.isfinite(history["loss"]), "step"].iloc[0] if onset is None else onset
        axes.axvline(first, color=NAN, linestyle="--", label=f"not finite from step {first:,}")
    loss = finite["loss"]
    if len(loss) and loss.max() > 20 * max(loss.median(), 1e-12) and loss.min() > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss of the batch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_title(wrapped(title))
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=3, columnspacing=0.8, handlelength=1.6)
    return figure


def wrapped(title: str, width: int = 50) -> str:
    """Return a title in lines that fit above a figure."""
    return "\n".join(textwrap.wrap(title, width))


@styled()
def decision_boundary(
    predictions: NDArray[np.float64], extent: tuple[float, float], threshold: float, title: str
) -> Figure:
    """Draw a network's prediction over the plane, with its decision boundary and the four corners.

    Args:
        predictions: shape (n, n), row by x2, column by x1, on an even grid.
        extent: the smallest and the largest coordinate of the grid, on both axes.
        threshold: the value on the boundary.
        title: describes the run.
    """
    figure, axes = subplots(height=2.9)
    grid = np.linspace(*extent, len(predictions))
    if np.isfinite(predictions).all():
        away = max(float(np.abs(predictions - threshold).max()), 1e-12)
        span = min(away, 1.0) if threshold == 0 else 0.5
        scale = threshold - span, threshold + span
        shades = draw_predictions(axes, grid, grid, predictions, scale, threshold, size=36)
        figure.colorbar(shades, ax=axes, label=f"prediction (line: {threshold:g})")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    else:
        axes.text(0.5, 0.5, "the predictions\nare not finite", ha="center", va="center")
        axes.set(xlim=extent, ylim=extent, aspect="equal")
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    figure.suptitle(wrapped(title), x=0.01, ha="left", fontsize=8)
    return figure


@styled()
def outcomes(cells: pd.DataFrame, keys: Sequence[str]) -> Figure:
    """Draw the outcomes of a sweep: for each cell a bar of shares, with the interval of the share solved.

    Args:
        cells: of `cells.cells`.
        keys: its columns that tell cells apart.
    """
    rows = cells.to_dict("records")
    names = [f"{setting_words({key: row[key] for key in keys})} (n = {row['runs']:,})".strip() for row in rows]
    wide = 1.8 + 0.05 * max(map(len, names))  # inches: the bars and the longest name
    figure, axes = subplots(width=max(COLUMN, wide), height=0.17 * len(cells) + 1.0)
    for y, row in enumerate(rows):
        outcome_bar(axes, y, row, width=1 / row["runs"])
        solved = row["solved"] / row["runs"]
        low, high = wilson(row["solved"], row["runs"])
        axes.errorbar(solved, y, xerr=error_bars([low], [solved], [high]), color="black", capsize=2, linewidth=0.9)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of runs")
    figure.suptitle("lines: 95 % interval of the share solved", x=0.01, ha="left", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    outcome_legend(figure, loc="outside lower center")
    return figure
