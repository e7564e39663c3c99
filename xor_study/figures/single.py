"""Figures of a single run, and of a single sweep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xor_study.analysis.statistics import wilson
from xor_study.errors import typed
from xor_study.figures.style import BLUE, COLUMN, ORANGE, outcome_bar, outcome_legend, styled, subplots


@styled()
def loss_curve(history: pd.DataFrame, title: str) -> Figure:
    """Draw the loss of one run over its steps: every step thin, the mean of each epoch thick.

    Args:
        history: columns step, epoch and loss.
        title: describes the run.

    Example:
        >>> from xor_study import RunSpec, train
        >>> result = train(RunSpec(epochs=2, iterations=50), every_step=True)
        >>> loss_curve(result.history, "the article's network").axes[0].get_ylabel()
        'loss'
    """
    figure, axes = subplots(height=2.3)
    finite = history[np.isfinite(history["loss"])]
    axes.plot(finite["step"], finite["loss"], color=BLUE, alpha=0.35, linewidth=0.4, label="each step")
    epochs = history.groupby("epoch")[["step", "loss"]].mean()
    # A mean over an epoch with NaN would be of its finite steps only.
    epochs = epochs[np.isfinite(history.groupby("epoch")["loss"].sum(skipna=False))]
    marker = "o" if len(epochs) < 30 else ""
    axes.plot(epochs["step"], epochs["loss"], color="black", marker=marker, markersize=3, label="mean of an epoch")
    if len(finite) < len(history):
        onset = history.loc[~np.isfinite(history["loss"]), "step"].iloc[0]
        axes.axvline(onset, color=ORANGE, linestyle="--", label=f"loss not finite from step {onset}")
    loss = finite["loss"]
    if len(loss) and loss.max() > 20 * max(loss.median(), 1e-12) and loss.min() > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    return figure


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
        shades = axes.pcolormesh(
            grid, grid, predictions, cmap="PuOr_r", vmin=threshold - span, vmax=threshold + span, rasterized=True
        )
        figure.colorbar(shades, ax=axes, label="prediction")
        if predictions.min() < threshold < predictions.max():
            axes.contour(grid, grid, predictions, levels=[threshold], colors="black", linewidths=1)
    else:
        axes.text(0.5, 0.5, "the predictions\nare not finite", ha="center", va="center")
    for x1, x2, marker, label in (((0, 1), (0, 1), "o", "false"), ((0, 1), (1, 0), "s", "true")):
        axes.scatter(
            x1,
            x2,
            marker=marker,
            s=36,
            facecolor="white",
            edgecolor="black",
            label=label,
            zorder=3,
            clip_on=False,
        )
    axes.set(xlabel="x1", ylabel="x2", title=title, xlim=extent, ylim=extent, aspect="equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure


@styled()
def outcomes(cells: pd.DataFrame, keys: Sequence[str]) -> Figure:
    """Draw the outcomes of a sweep: for each cell a bar of shares, with the interval of the share solved.

    Args:
        cells: of `cells.cells`.
        keys: its columns that tell cells apart.
    """
    rows = cells.to_dict("records")
    names = []
    for row in rows:
        values = [f"{key.rpartition('.')[2]}={typed(row[key])}" for key in keys if not pd.isna(row[key])]
        names.append(f"{' '.join(values)} (n = {row['runs']:,})".strip())
    wide = 1.8 + 0.055 * max(map(len, names))  # inches: the bars and the longest name
    figure, axes = subplots(width=max(COLUMN, wide), height=0.17 * len(cells) + 1.0)
    for y, row in enumerate(rows):
        outcome_bar(axes, y, row, width=1 / row["runs"])
        solved = row["solved"] / row["runs"]
        low, high = wilson(row["solved"], row["runs"])
        axes.errorbar(solved, y, xerr=[[solved - low], [high - solved]], color="black", capsize=2, linewidth=0.9)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of runs")
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    outcome_legend(figure, loc="outside lower center")
    return figure
