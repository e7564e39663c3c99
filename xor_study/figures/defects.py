"""Figures of Axon's three defects: what makes the network diverge, what makes it NaN, and the last steps of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xor_study.analysis.axon import BROKEN, NEWEST, OVERFLOW, PLATEAU, REPAIRED, SETTINGS, SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures.factors import factors, logits
from xor_study.figures.style import (
    BROKEN_COLOUR,
    COLUMN,
    LIMIT,
    SOUND,
    TALLEST,
    band,
    error_bars,
    legend_below,
    new_figure,
    outcome_bar,
    outcome_legend,
    styled,
    subplots,
)


@styled()
def mechanism(cells: pd.DataFrame, curves: pd.DataFrame, axon_losses: pd.DataFrame) -> Figure:
    """Draw what makes the network diverge and what makes it NaN, in two panels.

    Args:
        cells: of `cells.Study`.
        curves: of `cells.curves`.
        axon_losses: losses of the real Axon with SGD: columns version, seed, lr, step and loss, while it is finite.
    """
    study = Cells(cells)
    figure = new_figure(COLUMN, TALLEST)
    panels: Any = figure.subfigures(2, 1, height_ratios=(2.6, 1.9))
    top, bottom = panels
    upper = top.subplots()
    n = _loss_curves(upper, study, curves, axon_losses)
    legend_below(top, upper, 2)
    bars = _outcome_bars(bottom.subplots(1, 3, sharey=True), study)
    outcome_legend(bottom, loc="outside lower center")
    titles = (
        f"(a) loss (n = {n}; median of finite runs; band: quartiles)",
        f"(b) single repairs (n = {bars} a bar; 95 % interval of NaN)",
    )
    for panel, title in zip((top, bottom), titles, strict=True):
        panel.suptitle(title, x=0.01, ha="left", fontsize=8)
        panel.patch.set_visible(False)  # its edge is now 0, now -0, which would be other bits in a PDF
    return figure


def _loss_curves(axes: Axes, study: Cells, curves: pd.DataFrame, axon_losses: pd.DataFrame) -> int:
    """Draw losses of both versions over the real Axon's and return how many runs a line is of."""
    versions = (("axon_0_6_1", BROKEN, BROKEN_COLOUR, "Axon 0.6.1"), ("axon_0_7_0", NEWEST, SOUND, "Axon 0.7.0"))
    rates = ((0.01, "-", "o"), (0.1, "--", "s"))
    n = 0
    for (version, switches, colour, label), (lr, line, marker) in itertools.product(versions, rates):
        index = study.one(**switches, lr=lr)
        n = max(n, study.cells["n"][index])
        cell = curves[curves["cell"] == index]
        style: dict[str, Any] = {"color": colour, "linestyle": line, "label": f"{label}, rate {lr:g}"}
        band(axes, cell["step"], cell["median"], (cell["low"], cell["high"]), **style)
        real = axon_losses[(axon_losses["version"] == version) & (axon_losses["lr"] == lr)]
        for _, trace in real.groupby("seed"):
            loss, finite = trace["loss"].to_numpy(), len(trace)
            # The last five steps too: what happens just before the end lies between the recorded steps.
            steps = np.union1d(cell["step"][cell["step"] <= finite], np.arange(max(1, finite - 4), finite + 1))
            axes.plot(steps, loss[steps - 1], marker, color=colour, markersize=2.6, fillstyle="none", linewidth=0)
    axes.axhline(PLATEAU, **LIMIT, label=r"theory: $-\frac{1}{2} \log(2 \epsilon)$")
    axes.plot([], [], "ks", markersize=2.6, fillstyle="none", linewidth=0, label="real Axon (circles: rate 0.01)")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="batch loss")
    return int(n)


def _outcome_bars(panels: Sequence[Axes], study: Cells) -> int:
    """Draw the outcomes with each repair, a panel for each setting, and return how many runs a bar is of, at least."""
    visible, clip, sigmoid = ({switch: REPAIRED[switch]} for switch in SWITCHES)
    repairs = {
        "as in 0.6.1": {},
        "stable sigmoid": sigmoid,
        "correct clip": clip,
        "visible logits": visible,
        "all three": REPAIRED,
    }
    counts = []
    for axes, (setting, values) in zip(panels, SETTINGS.items(), strict=True):
        for y, repaired in enumerate(repairs.values()):
            row = study.row(**BROKEN | repaired | values)
            outcome_bar(axes, y, row.to_dict())
            spread = error_bars([1 - row["nonfinite_high"]], [1 - row["nonfinite"]], [1 - row["nonfinite_low"]])
            axes.errorbar(1 - row["nonfinite"], y, xerr=spread, color="black", capsize=1.5, linewidth=0.8)
            counts.append(row["n"])
        axes.set(xlim=(0, 1), ylim=(len(repairs) - 0.5, -0.5), title=setting)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panels[0].set_yticks(range(len(repairs)), list(repairs))
    panels[1].set_xlabel("share of runs")
    return int(min(counts))


@styled()
def anatomy(table: pd.DataFrame) -> Figure:
    """Draw the last steps of one run that goes to NaN.

    Args:
        table: of `mechanism.anatomy`.
    """
    corners = table.rename(columns={"sigmoid_gradient": "slope"})
    corners["corner"] = table["x1"].astype(str) + table["x2"].astype(str)
    figure, (upper, lower) = subplots(2, 1, height=3.4, sharex=True, height_ratios=(1, 1.2))
    upper.axhline(-OVERFLOW, **LIMIT)
    below: dict[str, Any] = {"va": "top", "fontsize": 7}
    upper.text(table["step"].min(), -1.3 * OVERFLOW, rf"below {-OVERFLOW:.2f}, $e^{{-z}} = \infty$", **below)
    logits(upper, corners)
    corner = factors(lower, corners)
    upper.set_title(f"(a) logits; NaN at step {table['step'].max():,}")
    lower.set_title(f"(b) gradient of corner {corner}, and its factors")
    lower.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lower.set_xlabel("step of one run of Axon 0.6.1")
    return figure
