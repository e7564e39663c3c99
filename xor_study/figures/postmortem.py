"""The figure of a postmortem: a run's loss and its last steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from xor_study.figures.style import BLUE, GREEN, GREY, ORANGE, styled, subplots

_MARKERS = dict(zip(("00", "01", "10", "11"), zip("osD^", (BLUE, ORANGE, GREEN, "black"), strict=True), strict=True))

_FACTORS = {
    "prediction": "|p|",
    "upstream": "|dL/dp|",
    "slope": "|dp/dz|",
    "exponential": "e^-z",
    "gradient": "|dL/dz|",
}


@styled()
def last_steps(
    title: str, history: pd.DataFrame, last: pd.DataFrame, corners: pd.DataFrame, marks: Mapping[str, int]
) -> Figure:
    """Draw a run's loss and its last steps, in two panels or, with corners, in four.

    Args:
        title: describes the run.
        history: of the whole run: column loss, the index is the step.
        last: of the last steps: columns step, grad_norm and max_abs_logit.
        corners: of the steps that were replayed: columns step, corner, logit, prediction, upstream, slope, gradient and
            perhaps exponential (e^-z); may be empty.
        marks: steps to mark in the curve of the loss, by their meaning.
    """
    panels = 4 if len(corners) else 2
    heights = [1.15] + [1] * (panels - 1)
    figure, axes = subplots(panels, height=1.75 * panels + 0.3, height_ratios=heights)
    figure.suptitle(title if len(title) <= 52 else title[:49] + "...", fontsize=8, x=0.01, ha="left")
    _loss(axes[0], history, marks)
    _growth(axes[1], last)
    if len(corners):
        _logits(axes[2], corners)
        _factors(axes[3], corners)
    for ax, letter in zip(axes, "abcd", strict=False):
        ax.set_title(f"({letter}) {ax.get_title()}", loc="left", fontsize=8)
        ax.set_title("")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[-1].set_xlabel("step")
    return figure


def _loss(axes: Axes, history: pd.DataFrame, marks: Mapping[str, int]) -> None:
    end = max(marks.values(), default=len(history))
    loss = history["loss"].loc[: end + 1]
    finite = loss[np.isfinite(loss)]
    mean = finite.rolling(10, min_periods=1).mean()
    axes.plot(finite.index, finite, color=BLUE, alpha=0.35, linewidth=0.5)
    axes.plot(mean.index, mean, color=BLUE, linewidth=1, label="mean of 10 steps")
    if len(finite) and finite.min() > 0 and finite.max() > 20 * finite.median():
        axes.set_yscale("log")
    for (what, step), line, colour in zip(marks.items(), ("--", "-", ":"), (GREY, ORANGE, "black"), strict=False):
        axes.axvline(step, color=colour, linestyle=line, linewidth=1, label=f"{what}, step {step:,}")
    axes.set(title="loss", ylabel="loss")
    axes.legend(fontsize=7, frameon=True, framealpha=0.85, edgecolor="none")


def _growth(axes: Axes, last: pd.DataFrame) -> None:
    for column, label, marker, colour in (
        ("max_abs_logit", "largest |z|", "o", BLUE),
        ("grad_norm", "gradient norm", "s", ORANGE),
    ):
        values = last[column].where(np.isfinite(last[column]) & (last[column] > 0))
        axes.plot(last["step"], values, color=colour, marker=marker, markersize=2, linewidth=0.8, label=label)
    axes.set(title="the last steps", yscale="log")
    axes.legend(fontsize=7)


def _logits(axes: Axes, corners: pd.DataFrame) -> None:
    for name, rows in corners.groupby("corner", sort=False):
        marker, colour = _MARKERS[str(name)]
        shown = rows["logit"].where(np.isfinite(rows["logit"]))
        axes.plot(rows["step"], shown, marker=marker, color=colour, markersize=2.5, linewidth=0.8, label=str(name))
    axes.set(title="z of the four corners", ylabel="z")
    _symmetric_log(axes, 1.0)
    axes.legend(fontsize=7, ncols=4, handlelength=1.2, columnspacing=1)


def _factors(axes: Axes, corners: pd.DataFrame) -> None:
    """Draw the factors of the gradient of the corner that breaks first; infinite ones at the upper edge."""
    broken = corners[~np.isfinite(corners["gradient"])]
    extreme = corners.iloc[int(corners["logit"].abs().fillna(np.inf).argmax())]
    corner = (broken.iloc[0] if len(broken) else extreme)["corner"]
    rows = corners[corners["corner"] == corner]
    shown = {label: rows[column].abs() for column, label in _FACTORS.items() if column in rows}
    finite = np.concatenate([size[np.isfinite(size) & (size > 0)] for size in shown.values()])
    low, high = (min(finite.min(), 1e-3), max(finite.max(), 1.0)) if len(finite) else (1e-3, 1.0)
    edge = high * (high / low) ** 0.25
    styles = zip("osDv^", (BLUE, GREY, ORANGE, GREEN, "black"), strict=True)
    for (label, size), (marker, colour) in zip(shown.items(), styles, strict=False):
        style: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 2.5, "linewidth": 0.8}
        axes.plot(rows["step"], size.where(np.isfinite(size)), label=label, **style)
        infinite = rows["step"][np.isinf(size)]
        axes.plot(infinite, np.full(len(infinite), edge), marker, color=colour, markersize=4)
        for step in infinite:
            text = f"{label} = inf"
            axes.annotate(text, (step, edge), textcoords="offset points", xytext=(-5, -3), ha="right", fontsize=7)
    for step in broken[broken["corner"] == corner]["step"].head(1):
        axes.axvline(step, color="black", linewidth=0.8)
        above = edge * (high / low) ** 0.2
        axes.annotate("dL/dz = NaN", (step, above), textcoords="offset points", xytext=(-5, 0), ha="right", fontsize=7)
    axes.set(title=f"corner {corner}: what its gradient is made of", ylim=(0, edge * (high / low) ** 0.8))
    _symmetric_log(axes, low)
    axes.legend(fontsize=7, ncols=3, handlelength=1, columnspacing=0.8, loc="upper left")


def _symmetric_log(axes: Axes, linear: float) -> None:
    """Make the y axis symmetric and logarithmic beyond `linear`, with room between its ticks."""
    axes.set_yscale("symlog", linthresh=linear)
    locator = SymmetricalLogLocator(axes.yaxis.get_transform())
    locator.set_params(numticks=6)
    ticks = [tick for tick in locator.tick_values(*axes.get_ylim()) if tick == 0 or abs(tick) > 3 * linear]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
