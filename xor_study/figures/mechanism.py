"""The figure of the mechanism: what makes the network diverge and what makes it NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xor_study.analysis.axon import OVERFLOW, PLATEAU
from xor_study.figures.style import BLUE, COLUMN, GREEN, GREY, ORANGE, STYLE, outcome_bar, outcome_legend


def mechanism(
    curves: pd.DataFrame,
    cells: pd.DataFrame,
    anatomy: pd.DataFrame,
    axon_losses: pd.DataFrame,
) -> Figure:
    """Return what makes the network diverge and what makes it NaN, in three panels.

    Args:
        curves: of `mechanism.curves`.
        cells: of `mechanism.cells`.
        anatomy: of `mechanism.anatomy`.
        axon_losses: what the real Axon did with SGD: columns version, seed, lr, step and loss, while it is finite.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(COLUMN, 8.2))
        panels: Any = figure.subfigures(3, 1, height_ratios=(2.5, 2.9, 2.8))
        top, middle, bottom = panels
        _loss_curves(top.subplots(), curves, axon_losses)
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


def _loss_curves(axes: Axes, curves: pd.DataFrame, axon_losses: pd.DataFrame) -> None:
    styles = (("axon_0_6_1", False, ORANGE, "broken (0.6.1)"), ("axon_0_7_0", True, BLUE, "sound (0.7.0)"))
    for version, visible, colour, label in styles:
        for lr, line in ((0.01, "-"), (0.1, "--")):
            of_cell = _switched(curves, visible, "squared", "exponential")
            cell = of_cell[(of_cell["optimizer"] == "sgd") & (of_cell["lr"] == lr)]
            axes.plot(cell["step"], cell["median"], line, color=colour, label=f"{label}, lr {lr:g}")
            axes.fill_between(cell["step"], cell["low"], cell["high"], color=colour, alpha=0.2, linewidth=0)
            real = axon_losses[(axon_losses["version"] == version) & (axon_losses["lr"] == lr)]
            for _, trace in real.groupby("seed"):
                loss, finite = trace["loss"].to_numpy(), len(trace)
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
            outcome_bar(axes, place, row)
            edge = 1 - row["nonfinite"]
            spread = [[row["nonfinite_high"] - row["nonfinite"]], [row["nonfinite"] - row["nonfinite_low"]]]
            axes.errorbar(edge, place, xerr=spread, color="black", capsize=2, linewidth=0.9)
            ticks.append(place)
            names.append(label)
            place += 1
        place += 1.4
    axes.set(yticks=ticks, yticklabels=names, xlim=(0, 1), ylim=(place - 1.7, -1.6), xlabel="share of runs")
    outcome_legend(axes, loc="upper center", bbox_to_anchor=(0.35, -0.16))


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
