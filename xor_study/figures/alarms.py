"""The figure of the monitors: how well they tell failing runs from sound ones, and how early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from xor_study.figures.style import BLUE, COLUMN, GREEN, ORANGE, new_figure, styled

_STYLES: dict[str, dict[str, Any]] = {
    "loss above its start": {"color": ORANGE, "marker": "o", "linestyle": "-"},
    "gradient norm": {"color": BLUE, "marker": "s", "linestyle": "--"},
    "largest logit": {"color": "black", "marker": "D", "linestyle": ":"},
    "saturation": {"color": GREEN, "marker": "^", "linestyle": "-."},
}
"""A colour, a marker and a stroke for each monitor, so that grey print tells them apart."""

_WORDS = {
    "mechanism": "Axon's loss",
    "axon_rates": "its other rates",
    "learning_rate": "optimizers",
    "batching": "batch sizes",
    "precision": "precisions",
    "loss": "other losses",
}
"""The studies in words."""

_TITLES = {"nonfinite": "(a) NaN", "failure": "(b) NaN or diverged"}


@styled()
def monitors(roc: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Draw how well monitors tell failing runs from sound ones, and how early.

    Args:
        roc: of `monitors.roc`.
        summary: of `monitors.summary`.
    """
    # Rows have columns of their own: only (c) needs room for words at its left.
    figure = new_figure(COLUMN, 4.5)
    parts: Any = figure.subfigures(4, 1, height_ratios=[1.25, 1.5, 1.25, 0.4])
    top, middle, bottom, legend = parts
    for axes, (target, title) in zip(top.subplots(1, 2), _TITLES.items(), strict=True):
        _roc(axes, roc[(roc["study"] == "all") & (roc["target"] == target)], title)
        counted = summary[(summary["study"] == "all") & (summary["target"] == target)].head(1)
        for row in counted.to_dict("records"):
            runs = sum(row[name] for name in ("nonfinite", "broken", "unsolved", "sound"))
            failing = round(row["prevalence"] * runs)
            axes.set_xlabel(f"alarms in {runs - failing:,} other runs", fontsize=7)
            axes.set_ylabel(f"alarms in {failing:,}", fontsize=7)
    moved = summary[summary["tuned_on"] == "mechanism"]
    whole = moved[moved["setting"].isna() & (moved["target"] == "nonfinite")]
    left, right = middle.subplots(1, 2)
    _alarmed(left, whole)
    _meant(right, whole)
    _lead(bottom.subplots(), moved)
    handles = [left.plot([], [], label=name, markersize=3, linewidth=1, **style)[0] for name, style in _STYLES.items()]
    legend.legend(handles=handles, ncols=2, loc="center", columnspacing=1, fontsize=7, handlelength=3)
    return figure


def _roc(axes: Axes, roc: pd.DataFrame, title: str) -> None:
    """Draw an ROC curve for each monitor, and the diagonal of guessing."""
    for kind, style in _STYLES.items():
        curve = roc[roc["monitor"] == kind].sort_values(["false", "true"])
        axes.plot(curve["false"], curve["true"], linewidth=1, **(style | {"marker": ""}))
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.4)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.set_title(title, loc="left", fontsize=8)
    axes.tick_params(labelsize=7)


def _rows(axes: Axes, whole: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """Draw a value with its interval for each study and monitor, one below the other; return the studies."""
    names = [name for name in _WORDS if name in set(whole["study"])]
    for y, name in enumerate(names):
        for offset, (kind, style) in enumerate(_STYLES.items()):
            for row in whole[(whole["study"] == name) & (whole["monitor"] == kind)].to_dict("records"):
                spread = [[row[value] - row[low]], [row[high] - row[value]]]
                marks = {"fmt": style["marker"], "color": style["color"], "markersize": 2.5, "linewidth": 0.8}
                axes.errorbar(row[value], y + 0.2 * (offset - 1.5), xerr=np.maximum(spread, 0), **marks)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.03, 1.03), xticks=[0, 0.5, 1])
    for y in range(1, len(names)):
        axes.axhline(y - 0.5, color="black", linewidth=0.2)
    axes.tick_params(labelsize=7)
    axes.tick_params(axis="y", length=0)
    return names


def _alarmed(axes: Axes, whole: pd.DataFrame) -> None:
    """Draw the share of sound runs with an alarm, by study."""
    false = whole.assign(
        false=1 - whole["specificity"], low=1 - whole["specificity_high"], high=1 - whole["specificity_low"]
    )
    names = _rows(axes, false, "false", "low", "high")
    sound = [whole.loc[whole["study"] == name, "sound"].iloc[0] for name in names]
    labels = [f"{_WORDS[name]} ({n:,})" for name, n in zip(names, sound, strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=6)
    axes.set_xlabel("alarms in (n) sound runs", fontsize=7)
    axes.set_title("(c) false alarms", loc="left", fontsize=8)


def _meant(axes: Axes, whole: pd.DataFrame) -> None:
    """Draw the share of alarms that mean NaN, by study, with the share of all runs that go to NaN as a line."""
    names = _rows(axes, whole, "precision", "precision_low", "precision_high")
    for y, name in enumerate(names):
        prevalence = whole.loc[whole["study"] == name, "prevalence"].iloc[0]
        axes.plot([prevalence, prevalence], [y - 0.45, y + 0.45], color="black", linewidth=0.6, linestyle="--")
    axes.set_yticks([])
    axes.set_xlabel("NaN after an alarm", fontsize=7)
    axes.set_title("(d) precision", loc="left", fontsize=8)


def _lead(axes: Axes, moved: pd.DataFrame) -> None:
    """Draw median and quartiles of the steps from alarm to NaN by rate, of the reported failure with SGD."""
    rows = moved[moved["setting"].notna() & (moved["target"] == "nonfinite") & (moved["nonfinite"] > 0)]
    rows = rows[rows["setting"].str.startswith("Axon 0.6.1 sgd ")]
    for offset, (kind, style) in enumerate(_STYLES.items()):
        # The medians of a few steps at high rates coincide, so the monitors are drawn side by side.
        members = rows[(rows["monitor"] == kind) & (rows["alarmed_nonfinite"] > 0)].sort_values("lr")
        x = members["lr"] * 10 ** (0.1 * (offset - 1.5))
        spread = [members["lead_median"] - members["lead_low"], members["lead_high"] - members["lead_median"]]
        axes.errorbar(x, members["lead_median"], yerr=spread, markersize=3, linewidth=0.8, **_errorbar(style))
    counted = rows.drop_duplicates("lr").sort_values("lr")
    labels = [f"{row['lr']:g}".removeprefix("0") + f"\n{row['nonfinite']}" for row in counted.to_dict("records")]
    if labels:  # a logarithmic axis needs values
        axes.set(xscale="log", yscale="log")
    axes.set_xticks(counted["lr"], labels, fontsize=6)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("learning rate, and number of runs that go to NaN", fontsize=7)
    axes.set_ylabel("steps ahead", fontsize=7)
    axes.set_title("(e) from alarm to NaN, Axon 0.6.1 with SGD", loc="left", fontsize=8)


def _errorbar(style: dict[str, Any]) -> dict[str, Any]:
    return {"fmt": style["marker"], "color": style["color"], "linestyle": style["linestyle"]}
