"""The last steps of a run that goes to NaN, corner by corner: the logits, and what a corner's gradient is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, SymmetricalLogLocator

from xor_study.figures.style import LEVEL_COLOURS, LIMIT, legend_beside

CORNERS: dict[str, dict[str, Any]] = {
    "00": {"color": LEVEL_COLOURS[3], "marker": "s", "markersize": 6.5, "markeredgewidth": 0.8},
    "01": {"color": LEVEL_COLOURS[1], "marker": "o", "markersize": 5, "markeredgewidth": 0.8},
    "10": {"color": LEVEL_COLOURS[2], "marker": "D", "markersize": 3, "markeredgewidth": 0.8},
    "11": {"color": "black", "marker": ".", "markersize": 2, "markeredgewidth": 0.8},
}
"""Style of each corner: hollow marks from large to small, so that none is hidden where they coincide."""

_FACTORS = {
    "prediction": (r"$|p|$", "o", LEVEL_COLOURS[4]),
    "upstream": (r"$|\partial L/\partial p|$", "s", LEVEL_COLOURS[5]),
    "slope": (r"$|\partial p/\partial z|$", "D", LEVEL_COLOURS[6]),
    "exponential": (r"$e^{-z}$", "v", LEVEL_COLOURS[7]),
    "gradient": (r"$|\partial L/\partial z|$", "^", "black"),
}


def logits(axes: Axes, corners: pd.DataFrame) -> None:
    """Draw the logit of each corner over the steps, as far as it is finite.

    Args:
        axes: to draw into.
        corners: columns step, corner and logit.
    """
    for name, rows in corners.groupby("corner", sort=False):
        shown = rows["logit"].where(np.isfinite(rows["logit"]))
        axes.plot(rows["step"], shown, linewidth=0.7, fillstyle="none", label=str(name), **CORNERS[str(name)])
    axes.set_ylabel("$z$")
    _symmetric_log(axes, 1.0)
    legend_beside(axes, title="corner", title_fontsize=7)


def factors(axes: Axes, corners: pd.DataFrame) -> str:
    """Draw the factors of the gradient of the corner that breaks first; infinite ones at the upper edge.

    Args:
        axes: to draw into.
        corners: columns step, corner, logit, gradient and some of prediction, upstream, slope and exponential (e^-z).

    Returns:
        The corner.
    """
    broken = corners[~np.isfinite(corners["gradient"])]
    extreme = corners.iloc[int(corners["logit"].abs().fillna(np.inf).argmax())]
    corner = str((broken.iloc[0] if len(broken) else extreme)["corner"])
    rows = corners[corners["corner"] == corner]
    shown = {column: rows[column].abs() for column in _FACTORS if column in rows}
    finite = np.concatenate([size[np.isfinite(size) & (size > 0)] for size in shown.values()])
    low, high = (min(finite.min(), 1e-3), max(finite.max(), 1.0)) if len(finite) else (1e-3, 1.0)
    edge = high * (high / low) ** 0.25
    for column, size in shown.items():
        label, marker, colour = _FACTORS[column]
        style: dict[str, Any] = {"marker": marker, "color": colour}
        # Where the prediction is small its slope hardly differs: a larger hollow mark shows around the other one.
        mark: dict[str, Any] = {"markersize": 6, "fillstyle": "none"} if column == "prediction" else {"markersize": 2.5}
        axes.plot(rows["step"], size.where(np.isfinite(size)), label=label, linewidth=0.8, **mark, **style)
        infinite = rows["step"][np.isinf(size)]
        axes.plot(infinite, np.full(len(infinite), edge), linestyle="", markersize=5, clip_on=False, **style)
        for step in infinite[:1]:
            _note(axes, rf"{label} $= \infty$", step, edge)
    for step in broken[broken["corner"] == corner]["step"].head(1):
        axes.axvline(step, **LIMIT)
        _note(axes, r"$\partial L/\partial z$ = NaN", step, edge, above=10)
    axes.set_ylim(0, edge * (high / low) ** 0.7)
    _symmetric_log(axes, low)
    legend_beside(axes)
    return corner


def _note(axes: Axes, text: str, step: float, height: float, above: int = 0) -> None:
    where: dict[str, Any] = {"xytext": (-6, above), "ha": "right", "va": "center"}
    axes.annotate(text, (step, height), textcoords="offset points", fontsize=7, **where)


def _symmetric_log(axes: Axes, linear: float) -> None:
    """Make the y axis symmetric and logarithmic beyond `linear`, with room between its ticks."""
    axes.set_yscale("symlog", linthresh=linear)
    locator = SymmetricalLogLocator(axes.yaxis.get_transform())
    locator.set_params(numticks=5)
    ticks = [tick for tick in locator.tick_values(*axes.get_ylim()) if tick == 0 or abs(tick) > 3 * linear]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
