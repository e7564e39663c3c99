"""The figures of docs/theory.md: why half of the broken runs go to NaN, and which activations solve XOR at width 2."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xor_study.analysis.axon import OVERFLOW
from xor_study.analysis.cells import Cells
from xor_study.figures.style import BLUE, GREEN, GREY, ORANGE, OUTCOME_COLOURS, styled, subplots
from xor_study.figures.words import value_words
from xor_study.model.gradients import AXON_EPSILON
from xor_study.training.spec import RunSpec

NOT_MONOTONE = ("gelu", "silu", "mish")
"""Hidden activations that fall and rise: a single unit of theirs can represent XOR."""

_DTYPES = {"float32": (ORANGE, "o"), "float64": (BLUE, "s")}


@styled()
def why_half(theory: pd.DataFrame) -> Figure:
    """Draw the map u -> u + a e^u with its zones, and the predicted over the measured shares of NaN.

    Args:
        theory: of `theory.theory`.
    """
    figure, (upper, lower) = subplots(2, 1, height=4.4, height_ratios=(1, 1.25))
    _map(upper, theory)
    _agreement(lower, theory)
    return figure


def _map(axes: Axes, table: pd.DataFrame) -> None:
    """Draw where one step leads for the article's network in float32, as its K was measured."""
    usual = RunSpec()
    cell = table[(table["lr"] == usual.lr) & (table["hidden"] == usual.hidden) & (table["batch"] == str(usual.batch))]
    a = usual.lr * float(cell["k_median"].iloc[0]) / (len("0011") * int(usual.batch))
    frozen = -math.log(AXON_EPSILON)
    u = np.linspace(2, frozen, 2000)
    after = u + a * np.exp(u) / (1 + AXON_EPSILON * np.exp(u)) ** 2
    ends = [2.0, *(float(u[np.argmax(after > bound)]) for bound in (frozen, OVERFLOW)), frozen]
    names = ("climbs on", "freezes", "NaN")
    colours = (GREY, OUTCOME_COLOURS["diverged"], OUTCOME_COLOURS["nonfinite"])
    for low, high, name, colour, shade in zip(ends[:-1], ends[1:], names, colours, (0.12, 0.35, 0.55), strict=True):
        axes.axvspan(low, high, color=colour, alpha=shade, linewidth=0)
        axes.text((low + high) / 2, 4e3, name, ha="center", va="center")
    axes.plot(u, after, color="black", linewidth=1.2)
    for bound, name in ((frozen, "mask: $p = 10^{-7}$"), (OVERFLOW, "edge: $e^u$ overflows in float32")):
        axes.axhline(bound, color="black", linestyle=":", linewidth=0.9)
        axes.text(2.1, bound * 1.1, name, va="bottom")
    axes.set(xlim=(2, frozen), yscale="log", ylim=(2, 1e4), xlabel="$u = -z$ of the worst corner before a step")
    axes.set_ylabel("$u$ after the step")
    axes.set_title(f"(a) one step of SGD {usual.lr:g}: $u \\to u + a\\,e^u$", loc="left", fontsize=8.5)


def _agreement(axes: Axes, table: pd.DataFrame) -> None:
    """Draw predicted over measured shares."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for dtype, (colour, marker) in _DTYPES.items():
        cells = table[table["dtype"] == dtype]
        middle = cells["measured"]
        error = np.stack([middle - cells["low"], cells["high"] - middle])
        # Hollow squares over filled circles, which differ in grey too.
        face = colour if marker == "o" else "white"
        style = {"markersize": 3.2, "markerfacecolor": face, "markeredgewidth": 0.8, "elinewidth": 0.6}
        label = f"{dtype} ({len(cells)} cells)"
        axes.errorbar(cells["carried"], middle, error, fmt=marker, color=colour, label=label, **style)  # type: ignore[arg-type]
    top = max(table["high"].max(), table["carried"].max()) + 0.02
    axes.set(xlim=(-0.01, top), ylim=(-0.01, top), xlabel="share NaN, predicted", ylabel="share NaN, measured")
    counts = sorted(table["n"].unique())
    runs = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    axes.set_title(f"(b) theory and runs ($n$ = {runs} a cell, 95 %)", loc="left", fontsize=8.5)
    axes.legend(loc="lower right")


@styled()
def width_two(cells: pd.DataFrame) -> Figure:
    """Draw which share of networks with two hidden units solves XOR, by activation.

    Args:
        cells: of `cells.Study`.
    """
    rows = Cells(cells).where("activation.hidden", "epochs", hidden=2, batch="full", lr=0.1)
    rows = rows[rows["epochs"] == rows["epochs"].max()].sort_values(["solved", "activation.hidden"])
    figure, axes = subplots(height=2.9)
    for y, row in enumerate(rows.to_dict("records")):
        bends = row["activation.hidden"] in NOT_MONOTONE
        error = [[row["solved"] - row["solved_low"]], [row["solved_high"] - row["solved"]]]
        style = {"markersize": 4, "capsize": 2, "markerfacecolor": GREEN if bends else "white"}
        axes.errorbar(row["solved"], y, xerr=error, fmt="D" if bends else "o", color=GREEN if bends else BLUE, **style)
    axes.plot([], [], "D", color=GREEN, markersize=4, label="falls and rises")
    axes.plot([], [], "o", color=BLUE, markersize=4, markerfacecolor="white", label="monotone")
    names = [value_words(name, "activation.hidden") for name in rows["activation.hidden"]]
    axes.set(yticks=range(len(rows)), yticklabels=names, xlim=(-0.03, 1.03), xlabel="share of runs that solve XOR")
    axes.grid(axis="y", linewidth=0.3)
    axes.set_title(f"two hidden units, SGD 0.1 ($n$ = {rows['n'].iloc[0]:,} each)", loc="left", fontsize=8.5)
    axes.legend(loc="lower right")
    return figure
