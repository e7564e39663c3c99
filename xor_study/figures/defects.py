"""The figure of Axon's three defects: what makes the network diverge and what makes it NaN."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xor_study.analysis.axon import BROKEN, NEWEST, OVERFLOW, PLATEAU, PLATEAU_FORMULA, REPAIRED, SETTINGS, SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures.style import BLUE, COLUMN, GREEN, GREY, ORANGE, new_figure, outcome_bar, outcome_legend, styled

EDGE = round(OVERFLOW, 2)
"""Drawn where its label says."""


@styled()
def mechanism(cells: pd.DataFrame, curves: pd.DataFrame, anatomy: pd.DataFrame, axon_losses: pd.DataFrame) -> Figure:
    """Draw what makes the network diverge and what makes it NaN, in three panels.

    Args:
        cells: of `cells.Study`.
        curves: of `cells.curves`.
        anatomy: of `mechanism.anatomy`.
        axon_losses: losses of the real Axon with SGD: columns version, seed, lr, step and loss, while it is finite.
    """
    study = Cells(cells)
    figure = new_figure(COLUMN, 8.2)
    panels: Any = figure.subfigures(3, 1, height_ratios=(2.5, 2.9, 2.8))
    top, middle, bottom = panels
    n = [_loss_curves(top.subplots(), study, curves, axon_losses), _outcome_bars(middle.subplots(), study)]
    _last_steps(bottom.subplots(2, 1, sharex=True), anatomy)
    titles = (
        f"(a) loss: median, quartiles of runs still finite (n = {n[0]})",
        f"(b) single repairs (n = {n[1]} a bar; 95 % intervals)",
        f"(c) the last steps of one run, NaN at step {anatomy['step'].max()}",
    )
    for panel, title in zip((top, middle, bottom), titles, strict=True):
        panel.suptitle(title, x=0.01, ha="left", fontsize=8.5)
        panel.patch.set_visible(False)  # its edge is now 0, now -0, which would be other bits in a PDF
    return figure


def _loss_curves(axes: Axes, study: Cells, curves: pd.DataFrame, axon_losses: pd.DataFrame) -> int:
    """Draw losses of both versions over the real Axon's and return how many runs a line is of."""
    versions = (("axon_0_6_1", BROKEN, ORANGE, "broken (0.6.1)"), ("axon_0_7_0", NEWEST, BLUE, "sound (0.7.0)"))
    rates = ((0.01, "-", "o"), (0.1, "--", "s"))
    n = 0
    for (version, switches, colour, label), (lr, line, marker) in itertools.product(versions, rates):
        index = study.one(**switches, lr=lr)
        n = max(n, study.cells["n"][index])
        cell = curves[curves["cell"] == index]
        axes.plot(cell["step"], cell["median"], line, color=colour, label=f"{label}, lr {lr:g}")
        axes.fill_between(cell["step"], cell["low"], cell["high"], color=colour, alpha=0.2, linewidth=0)
        real = axon_losses[(axon_losses["version"] == version) & (axon_losses["lr"] == lr)]
        for _, trace in real.groupby("seed"):
            loss, finite = trace["loss"].to_numpy(), len(trace)
            # The last five steps too: what happens just before the end lies between the recorded steps.
            steps = np.union1d(cell["step"][cell["step"] <= finite], np.arange(max(1, finite - 4), finite + 1))
            axes.plot(steps, loss[steps - 1], marker, color=colour, markersize=2.6, fillstyle="none", linewidth=0)
    axes.axhline(PLATEAU, color="black", linewidth=0.8, linestyle=":")
    axes.text(1, PLATEAU * 1.06, f"theory: {PLATEAU_FORMULA}", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="loss of the batch", ylim=(0.004, 60))
    axes.plot([], [], "o", color="black", markersize=2.6, fillstyle="none", label="real Axon (squares: lr 0.1)")
    axes.legend(loc="lower left", handlelength=2, fontsize=7)
    return int(n)


def _outcome_bars(axes: Axes, study: Cells) -> int:
    """Draw the outcomes with each repair in each setting and return how many runs a bar is of, at least."""
    visible, clip, sigmoid = ({switch: REPAIRED[switch]} for switch in SWITCHES)
    repairs = {
        "as in 0.6.1": {},
        "stable sigmoid": sigmoid,
        "correct clip": clip,
        "visible logits": visible,
        "all three": REPAIRED,
    }
    ticks, y, counts = {}, 0.0, []
    for setting, values in SETTINGS.items():
        axes.text(0, y - 0.6, setting, va="bottom", fontweight="bold")
        for label, repaired in repairs.items():
            row = study.row(**BROKEN | repaired | values)
            outcome_bar(axes, y, row.to_dict())
            spread = [[row["nonfinite_high"] - row["nonfinite"]], [row["nonfinite"] - row["nonfinite_low"]]]
            axes.errorbar(1 - row["nonfinite"], y, xerr=spread, color="black", capsize=2, linewidth=0.9)
            counts.append(row["n"])
            ticks[y] = label
            y += 1
        y += 1.4
    axes.set(yticks=list(ticks), yticklabels=list(ticks.values()), xlim=(0, 1), ylim=(y - 1.7, -1.6))
    axes.set_xlabel("share of runs")
    outcome_legend(axes, loc="upper center", bbox_to_anchor=(0.35, -0.16))
    return int(min(counts))


def _last_steps(both: Sequence[Axes], anatomy: pd.DataFrame) -> None:
    upper, lower = both
    corners = list(anatomy.groupby(["x1", "x2"], sort=False))
    for ((x1, x2), corner), marker, colour in zip(corners, "osD^", (BLUE, ORANGE, GREEN, "black"), strict=True):
        label = f"{x1}{x2}"
        upper.plot(corner["step"], -corner["logit"], marker=marker, color=colour, markersize=2.5, lw=0.8, label=label)
    upper.axhline(EDGE, color="black", linestyle=":", linewidth=0.8)
    upper.text(anatomy["step"].min(), EDGE * 1.15, f"{EDGE}: beyond, e^-z is infinite", va="bottom")
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
    for _, row in worst[worst["gradient"].isna()].iterrows():
        cause = "inf x 0 = " if np.isinf(row["exponential"]) and row["upstream"] == 0 else ""
        style: dict[str, Any] = {"textcoords": "offset points", "xytext": (-3, 4), "ha": "right"}
        lower.annotate(f"{cause}NaN", (row["step"], 1e-44), **style)
        lower.axvline(row["step"], color="black", linewidth=0.8)
    lower.set_yscale("symlog", linthresh=1e-44)  # the smallest subnormals of float32 are drawn
    lower.set(xlabel="step", ylabel="of the corner\nthat breaks", ylim=(-1e-45, 1e47), yticks=(0, 1e-30, 1, 1e30))
    lower.legend(ncols=3, handlelength=1.2, columnspacing=1, loc="upper left", bbox_to_anchor=(0.0, 0.9))
