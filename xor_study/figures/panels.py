"""What figures of the study and figures of a sweep have in common: functions that draw one table into axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from xor_study.figures.style import NAN, PREDICTIONS, SOLVED, band, error_bars, shades
from xor_study.figures.words import term_words

OUTCOME_LABELS = {"solved": "share solved", "nonfinite": "share NaN"}
"""The two outcomes that curves and maps show, with the label of their axis."""

_OUTCOME_SHADES = {"solved": SOLVED, "nonfinite": NAN}

MISSING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "/////"}
"""How a cell of a heat map is drawn that was not run."""


def share_curves(axes: Axes, table: pd.DataFrame, x: str, outcome: str, lines: Mapping[str, Any]) -> None:
    """Draw the share of runs with an outcome over a setting, with Wilson's interval as a band.

    Args:
        axes: to draw into.
        table: a row for each cell: columns x, label (of its line), and the outcome with _low and _high.
        x: a column of numbers.
        outcome: such as "solved".
        lines: style of each line, by label.
    """
    for label, style in lines.items():
        part = table[table["label"] == label].sort_values(x)
        ends = part[f"{outcome}_low"], part[f"{outcome}_high"]
        band(axes, part[x], part[outcome], ends, label=label, **style)
    axes.set(ylabel=OUTCOME_LABELS[outcome], ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_yticklabels(["0", "", "0.5", "", "1"])


def heat_map(axes: Axes, table: pd.DataFrame, x: str, y: str, outcome: str, ticks: Mapping[str, Any]) -> QuadMesh:
    """Draw the share of runs with an outcome as shades over two settings; what was not run is hatched.

    Args:
        axes: to draw into.
        table: a row for each cell: columns x, y and the outcome.
        x: a column; its values go from left to right.
        y: a column; its values go downwards.
        outcome: such as "solved".
        ticks: "x" and "y": the values of both in order, by their labels.

    Returns:
        The shades, for a colour bar.
    """
    columns, rows = list(ticks["x"].values()), list(ticks["y"].values())
    wide = table.pivot(index=y, columns=x, values=outcome).reindex(index=rows, columns=columns)
    axes.add_patch(Rectangle((-0.5, -0.5), len(columns), len(rows), linewidth=0, zorder=0, **MISSING))
    mesh = axes.pcolormesh(
        np.arange(len(columns) + 1) - 0.5,
        np.arange(len(rows) + 1) - 0.5,
        np.ma.masked_invalid(wide.to_numpy(float)),
        cmap=shades(_OUTCOME_SHADES[outcome]),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.5,
    )
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), list(ticks["x"]))
    axes.set_yticks(range(len(rows)), list(ticks["y"]))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return mesh


def shares_bar(figure: Figure, mesh: QuadMesh, axes: Iterable[Axes], outcome: str) -> None:
    """Draw the scale of a heat map below axes."""
    bar = figure.colorbar(mesh, ax=list(axes), location="bottom", ticks=[0, 0.5, 1], aspect=12, shrink=0.8, pad=0.02)
    bar.set_label(OUTCOME_LABELS[outcome], labelpad=1)
    bar.ax.set_xticklabels(["0", "0.5", "1"])
    bar.outline.set_linewidth(0.4)


def loss_bands(axes: Axes, tables: Mapping[str, pd.DataFrame], styles: Sequence[Mapping[str, Any]]) -> None:
    """Draw the median of losses over the steps, and their quartiles as a band.

    Args:
        axes: to draw into.
        tables: columns step, low, median and high, by the label of their line.
        styles: of the lines, in the same order.
    """
    for (label, table), style in zip(tables.items(), styles, strict=True):
        line = {**style, "marker": ""}
        band(axes, table["step"], table["median"], (table["low"], table["high"]), label=label, **line)
    axes.set(xscale="log", yscale="log", ylabel="loss of the batch")
    decades(axes)


def decades(axes: Axes) -> None:
    """Give a logarithmic y axis ticks at powers of ten, or at plain numbers if it spans less than two of them."""
    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def survival_curves(axes: Axes, table: pd.DataFrame, labels: Mapping[str, str], styles: Sequence[Any]) -> None:
    """Draw the share of runs that have not solved XOR yet over the steps; a bar marks where the others were stopped.

    Args:
        axes: to draw into.
        table: columns setting, step, unsolved, low and high.
        labels: of the lines, by setting.
        styles: of the lines, in the same order.
    """
    ends = []
    for (setting, label), style in zip(labels.items(), styles, strict=True):
        part, line = table[table["setting"] == setting], {**style, "marker": ""}
        band(axes, part["step"], part["unsolved"], (part["low"], part["high"]), step="post", label=label, **line)
        ends.append((part["step"].iloc[-1], part["unsolved"].iloc[-1], style["color"]))
    axes.set(xscale="log", xlabel="step", ylabel="share not solved yet", ylim=(-0.03, 1.03))
    for step, unsolved, colour in ends:  # after all lines, so that no line hides a mark
        if unsolved > 0:
            axes.plot(step, unsolved, "|", color=colour, markersize=8, clip_on=False)


def variance_bars(axes: Axes, table: pd.DataFrame) -> list[Patch]:
    """Draw the share of the variance that each factor explains, alone and with others; return a legend's handles.

    Args:
        axes: to draw into.
        table: columns term, share, low and high.
    """
    kinds = {
        "one factor": ("#444444", ""),
        "two together": ("#aaaaaa", "////"),
        "three or more": ("#cccccc", "...."),
    }
    y, terms = np.arange(len(table)), table["term"]
    of_kind = np.where(terms.str.contains(" x "), "two together", "one factor")
    of_kind = np.where(terms == "higher order", "three or more", of_kind)
    for kind, (colour, hatch) in kinds.items():
        chosen = of_kind == kind
        axes.barh(y[chosen], table["share"][chosen], 0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    spread = error_bars(table["low"], table["share"], table["high"])
    axes.errorbar(table["share"], y, xerr=spread, fmt="none", color="black", capsize=2, linewidth=0.8)
    axes.set_yticks(y, [term_words(term) for term in terms])
    axes.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, None), xlabel="share of the variance")
    used = [kind for kind in kinds if (of_kind == kind).any()]
    return [Patch(facecolor=kinds[kind][0], hatch=kinds[kind][1], edgecolor="white", label=kind) for kind in used]


def log_rates(axes: Axes, rates: Iterable[float]) -> None:
    """Give an x axis of learning rates a tick at each power of ten, as a plain number where that is short."""
    axes.set_xscale("log")
    powers = sorted({round(np.log10(rate)) for rate in rates})
    powers = powers[:: 1 + len(powers) // 7]
    axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{10.0**power:g}" for power in powers])


def draw_predictions(
    axes: Axes, x: Any, y: Any, values: Any, scale: tuple[float, float], threshold: float, size: float
) -> Any:
    """Draw predictions over the plane as shades, with the boundary between the classes and the four corners.

    Args:
        axes: to draw into.
        x: of the grid's columns, shape (columns,).
        y: of its rows, shape (rows,).
        values: predictions, shape (rows, columns).
        scale: the predictions at the light and at the dark end.
        threshold: the value on the boundary.
        size: of the corners' marks, in square points.

    Returns:
        The shades, for a colour bar.
    """
    shades = axes.pcolormesh(x, y, values, cmap=PREDICTIONS, vmin=scale[0], vmax=scale[1], rasterized=True)
    if values.min() < threshold < values.max():
        axes.contour(x, y, values, levels=[threshold], colors="black", linewidths=1.2)
    for x1, x2, marker, label in (((0, 1), (0, 1), "o", "false"), ((0, 1), (1, 0), "s", "true")):
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "zorder": 3, "clip_on": False}
        axes.scatter(x1, x2, marker=marker, s=size, label=label, **style)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    return shades
