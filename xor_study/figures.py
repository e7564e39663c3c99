"""Figures, one function each: they take tables and arrays, return a matplotlib figure, and know no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

COLUMN = 3.4
"""Width of a paper's column in inches."""

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""

_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}


def loss_curve(history: pd.DataFrame, title: str) -> Figure:
    """Return the loss of one run over its steps: every step thin, the mean of each epoch thick.

    Args:
        history: columns step, epoch and loss.
        title: what run it is.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.3))
        finite = history[np.isfinite(history["loss"])]
        axes.plot(finite["step"], finite["loss"], color=BLUE, alpha=0.35, linewidth=0.4, label="each step")
        epochs = history.groupby("epoch")[["step", "loss"]].mean()
        epochs = epochs[np.isfinite(history.groupby("epoch")["loss"].sum(skipna=False))]
        marker = "o" if len(epochs) < 30 else ""
        axes.plot(epochs["step"], epochs["loss"], color="black", marker=marker, markersize=3, label="mean of an epoch")
        if len(finite) < len(history):
            onset = history.loc[~np.isfinite(history["loss"]), "step"].iloc[0]
            axes.axvline(onset, color=ORANGE, linestyle="--", label=f"loss not finite from step {onset}")
        if len(finite) and finite["loss"].max() > 20 * max(finite["loss"].median(), 1e-12) and finite["loss"].min() > 0:
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="loss", title=title)
        axes.legend()
    return figure


def decision_boundary(
    predictions: NDArray[np.float64], extent: tuple[float, float], threshold: float, title: str
) -> Figure:
    """Return a network's prediction over the plane, with its decision boundary and the four corners.

    Args:
        predictions: shape (n, n), row by x2, column by x1, on an even grid.
        extent: the smallest and the largest coordinate of the grid, on both axes.
        threshold: the value on the boundary.
        title: what run it is.
    """
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.9))
        grid = np.linspace(*extent, len(predictions))
        finite = np.isfinite(predictions).all()
        if finite:
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


Trace = tuple[str, float, NDArray[np.float32]]
"""Of the real Axon with SGD: version, rate and the loss of each step."""

PLATEAU = -math.log(2e-7) / 2
"""Axon's clipped cross-entropy where every probability is 0: half of the targets are 1 and cost -log(2 eps) each."""

OVERFLOW = 88.72
"""e^x is infinite in float32 beyond this x, the logarithm of its largest number."""

OUTCOME_COLOURS = {"solved": "#009e73", "unsolved": "#f0e442", "diverged": "#e69f00", "nonfinite": "#d55e00"}
OUTCOME_HATCHES = {"solved": "", "unsolved": "...", "diverged": "///", "nonfinite": "xxx"}


def mechanism(
    curves: pd.DataFrame,
    cells: pd.DataFrame,
    anatomy: pd.DataFrame,
    traces: Sequence[Trace],
) -> Figure:
    """Return what makes the network diverge and what makes it NaN, in three panels.

    Args:
        curves: of `mechanism.curves`.
        cells: of `mechanism.cells`.
        anatomy: of `mechanism.anatomy`.
        traces: of the real Axon.
    """
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(COLUMN, 8.2))
        panels: Any = figure.subfigures(3, 1, height_ratios=(2.5, 2.9, 2.8))
        top, middle, bottom = panels
        _loss_curves(top.subplots(), curves, traces)
        _outcome_bars(middle.subplots(), cells)
        _last_steps(bottom.subplots(2, 1, sharex=True), anatomy)
        titles = (
            f"(a) loss: median, quartiles of runs still finite (n = {curves['n'].max()})",
            f"(b) single repairs (n = {cells['n'].min()} a bar; 95 % intervals)",
            f"(c) the last steps of one run, NaN at step {anatomy['step'].max()}",
        )
        for panel, title in zip((top, middle, bottom), titles, strict=True):
            panel.suptitle(title, x=0.01, ha="left", fontsize=8.5)
            panel.patch.set_visible(False)  # its edge is now 0, now -0, which would be other bits in a PDF
    return figure


def _switched(table: pd.DataFrame, visible: bool, clip: str, sigmoid: str) -> pd.DataFrame:
    return table[
        (table["loss.logits_visible"] == visible)
        & (table["loss.clip_gradient"] == clip)
        & (table["loss.sigmoid_gradient"] == sigmoid)
    ]


def _loss_curves(axes: Axes, curves: pd.DataFrame, traces: Sequence[Trace]) -> None:
    styles = (("axon_0_6_1", False, ORANGE, "broken (0.6.1)"), ("axon_0_7_0", True, BLUE, "sound (0.7.0)"))
    for version, visible, colour, label in styles:
        for lr, line in ((0.01, "-"), (0.1, "--")):
            of_cell = _switched(curves, visible, "squared", "exponential")
            cell = of_cell[(of_cell["optimizer"] == "sgd") & (of_cell["lr"] == lr)]
            axes.plot(cell["step"], cell["median"], line, color=colour, label=f"{label}, lr {lr:g}")
            axes.fill_between(cell["step"], cell["low"], cell["high"], color=colour, alpha=0.2, linewidth=0)
            real = [loss for name, rate, loss in traces if name == version and rate == lr]
            for loss in real:
                finite = int(np.isfinite(loss).sum())
                steps = np.union1d(cell["step"][cell["step"] <= finite], np.arange(max(1, finite - 4), finite + 1))
                marker = "o" if lr == 0.01 else "s"
                axes.plot(steps, loss[steps - 1], marker, color=colour, markersize=2.6, fillstyle="none", linewidth=0)
    axes.axhline(PLATEAU, color="black", linewidth=0.8, linestyle=":")
    axes.text(1, PLATEAU * 1.06, "theory: -log(2e-7) / 2", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="loss of the batch", ylim=(0.004, 60))
    axes.plot([], [], "o", color="black", markersize=2.6, fillstyle="none", label="real Axon (squares: lr 0.1)")
    axes.legend(loc="lower left", handlelength=2, fontsize=7)


def _outcome_bars(axes: Axes, cells: pd.DataFrame) -> None:
    semantics = (
        ("as in 0.6.1", (False, "squared", "exponential")),
        ("stable sigmoid", (False, "squared", "stable")),
        ("correct clip", (False, "correct", "exponential")),
        ("visible logits", (True, "squared", "exponential")),
        ("all three", (True, "correct", "stable")),
    )
    settings = (("sgd", 0.01, "SGD 0.01"), ("sgd", 0.1, "SGD 0.1"), ("polaris_adam", 0.001, "Adam 0.001"))
    ticks, names, place = [], [], 0.0
    for optimizer, lr, setting in settings:
        axes.text(0, place - 0.6, setting, va="bottom", fontweight="bold")
        for label, switches in semantics:
            cell = _switched(cells, *switches)
            (row,) = cell[(cell["optimizer"] == optimizer) & (cell["lr"] == lr)].to_dict("records")
            left = 0.0
            for outcome, colour in OUTCOME_COLOURS.items():
                hatch = OUTCOME_HATCHES[outcome]
                axes.barh(place, row[outcome], 0.8, left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
                left += row[outcome]
            edge = 1 - row["nonfinite"]
            spread = [[row["nonfinite_high"] - row["nonfinite"]], [row["nonfinite"] - row["nonfinite_low"]]]
            axes.errorbar(edge, place, xerr=spread, color="black", capsize=2, linewidth=0.9)
            ticks.append(place)
            names.append(label)
            place += 1
        place += 1.4
    axes.set(yticks=ticks, yticklabels=names, xlim=(0, 1), ylim=(place - 1.7, -1.6), xlabel="share of runs")
    patches = [
        Patch(facecolor=colour, hatch=OUTCOME_HATCHES[outcome], edgecolor="black", linewidth=0.4, label=label)
        for (outcome, colour), label in zip(
            OUTCOME_COLOURS.items(), ("solved", "unsolved", "diverged", "NaN"), strict=True
        )
    ]
    axes.legend(
        handles=patches, ncols=4, loc="upper center", bbox_to_anchor=(0.35, -0.16), columnspacing=1, handlelength=1.2
    )


def _last_steps(both: Sequence[Axes], anatomy: pd.DataFrame) -> None:
    upper, lower = both
    corners = list(anatomy.groupby(["x1", "x2"], sort=False))
    for ((x1, x2), corner), marker, colour in zip(corners, "osD^", (BLUE, ORANGE, GREEN, "black"), strict=True):
        label = f"{x1}{x2}"
        upper.plot(corner["step"], -corner["logit"], marker=marker, color=colour, markersize=2.5, lw=0.8, label=label)
    upper.axhline(OVERFLOW, color="black", linestyle=":", linewidth=0.8)
    upper.text(anatomy["step"].min(), OVERFLOW * 1.15, "88.72: beyond, e^-z is infinite", va="bottom")
    upper.set(ylabel="-logit (-z)", yscale="symlog", ylim=(0, 4000))
    upper.legend(ncols=4, handlelength=1.2, columnspacing=1, loc="upper left", bbox_to_anchor=(0.0, 0.66))
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    worst = max(corners, key=lambda item: -item[1]["logit"].iloc[-1])[1]
    finite = np.isfinite(worst["exponential"])
    lower.plot(worst["step"], worst["prediction"], "-o", color=BLUE, markersize=2.5, label="p")
    lower.plot(worst["step"], worst["upstream"], "-s", color=GREY, markersize=2.5, label="upstream gradient")
    lower.plot(worst["step"][finite], worst["exponential"][finite], "-^", color=ORANGE, markersize=2.5, label="e^-z")
    top = 1e42
    lower.plot(worst["step"][~finite], np.full((~finite).sum(), top), "^", color=ORANGE, markersize=5)
    for step in worst["step"][~finite]:
        lower.annotate("inf", (step, top), textcoords="offset points", xytext=(-5, -2), ha="right", color=ORANGE)
    for step in worst["step"][worst["gradient"].isna()]:
        lower.annotate("inf x 0 = NaN", (step, 1e-44), textcoords="offset points", xytext=(-3, 4), ha="right")
        lower.axvline(step, color="black", linewidth=0.8)
    lower.set_yscale("symlog", linthresh=1e-44)
    lower.set(xlabel="step", ylabel="of the corner\nthat breaks", ylim=(-1e-45, 1e47), yticks=(0, 1e-30, 1, 1e30))
    lower.legend(ncols=3, handlelength=1.2, columnspacing=1, loc="upper left", bbox_to_anchor=(0.0, 0.9))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF with the same bits for the same data, and close it.

    Returns:
        The paths.
    """
    paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    with plt.rc_context(_STYLE):
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    plt.close(figure)
    return paths
