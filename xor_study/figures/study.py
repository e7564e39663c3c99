"""The figures of the whole study; each takes tables of `results/reference`, or of a reproduction."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from xor_study.analysis.axon import ADAM, BROKEN, LOSS, NEWEST, OVERFLOW, SETTINGS, SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures.style import BLUE, GREEN, GREY, ORANGE, PALETTE, outcome_bar, outcome_legend, styled, subplots

_LINES: list[dict[str, Any]] = [
    {"color": colour, "marker": marker, "linestyle": line, "markersize": 3, "linewidth": 1}
    for (colour, marker), line in zip(
        zip(itertools.cycle(PALETTE), "osD^vPX*<>", strict=False), itertools.cycle(("-", "--", ":")), strict=False
    )
]
"""A colour, a marker and a stroke for each of ten lines: no two share more than one of them."""

VERDICT_MARKS = {
    "supported": ("o", GREEN),
    "refuted": ("X", ORANGE),
    "not the cause": ("s", BLUE),
    "undecided": ("D", GREY),
}

_LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}

MANTISSA = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Significant bits of each precision, the hidden one included."""

WIDER = ("bfloat16", "float16")
"""Precisions whose sigmoid torch evaluates in float32 and then rounds."""


def rounding_logit(dtype: str) -> float:
    """Return the logit from which on a probability is 1 in a precision: p log 2 or (p + 1) log 2 of its p bits.

    Numbers just below 1 are 2^-p apart, so 1 - e^-z, known exactly and then rounded, becomes 1 where e^-z <= 2^-(p+1):
    z = (p + 1) log 2. Evaluated in the precision itself, 1 / (1 + e^-z) is 1 as soon as 1 + e^-z is, and numbers just
    above 1 are 2^-(p-1) apart: z = p log 2. Ties go to 1, which is even.
    """
    return (MANTISSA[dtype] + (dtype in WIDER)) * math.log(2)


def _band(axes: Axes, table: pd.DataFrame, x: str, y: str, label: str, style: dict[str, Any]) -> None:
    """Draw a line with its interval, columns y, y_low and y_high."""
    axes.plot(table[x], table[y], label=label, **style)
    axes.fill_between(table[x], table[f"{y}_low"], table[f"{y}_high"], color=style["color"], alpha=0.2, linewidth=0)


def _runs(cells: pd.DataFrame) -> str:
    """Return how many runs each of some cells has."""
    counts = sorted(cells["n"].unique())
    return f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}"


@styled()
def symptom(table: pd.DataFrame) -> Figure:
    """Draw the output of Axon's loop: the mean of all losses so far, and the share of runs that is NaN.

    Args:
        table: of `evidence.symptom`.
    """
    figure, (upper, lower) = subplots(2, 1, height=3.6, sharex=True, height_ratios=(2, 1))
    upper.plot(table["step"], table["median"], color=ORANGE, label="median")
    upper.fill_between(table["step"], table["low"], table["high"], color=ORANGE, alpha=0.25, lw=0, label="quartiles")
    example = table.dropna(subset="example")
    label = f"seed {table['example_seed'].iloc[0]}, NaN from here"
    upper.plot(example["step"], example["example"], color="black", linewidth=0.9)
    upper.plot(example["step"].iloc[-1], example["example"].iloc[-1], "x", color="black", label=label)
    upper.axhline(0.77, color=GREY, linestyle=":", linewidth=0.9)
    upper.text(10000, 0.74, "the report's 0.77", va="top", ha="right", color=GREY)
    ticks = [0.5, 1, 2, 5]
    upper.set(xscale="log", yscale="log", ylabel="mean loss so far", yticks=ticks, yticklabels=map(str, ticks))
    upper.minorticks_off()
    upper.set_title(f"Axon 0.6.1, SGD without a rate (n = {table['n'].iloc[0]})", loc="left", fontsize=8.5)
    upper.legend(loc="upper left", bbox_to_anchor=(0, 0.95))
    lower.plot(table["step"], table["nan"], color=ORANGE, drawstyle="steps-post")
    lower.fill_between(table["step"], table["nan_low"], table["nan_high"], step="post", color=ORANGE, alpha=0.25, lw=0)
    lower.axvline(1000, color=GREY, linestyle=":", linewidth=0.9)
    lower.text(1000, 0.5, "one epoch ", ha="right", color=GREY)
    lower.set(xlabel="step", ylabel="share NaN", ylim=(0, 0.6))
    return figure


@styled()
def learning_rate(cells: pd.DataFrame) -> Figure:
    """Draw the shares of runs that solve XOR and that go to NaN, over the rate.

    Args:
        cells: of `cells.Study`.
    """
    study = Cells(cells)
    figure, (upper, lower) = subplots(2, 1, height=4.9, sharex=True, height_ratios=(1.35, 1))
    sound = study.where("lr", "optimizer")
    sound = sound[sound["n"] == sound["n"].max()].sort_values("lr")
    for (name, table), style in zip(sound.groupby("optimizer", sort=False), _LINES, strict=False):
        if name != ADAM:  # it is Adam with one more epsilon; the lines coincide
            _band(upper, table, "lr", "solved", str(name), style)
    upper.set_title(f"(a) the sound network ({_runs(sound)})", loc="left", fontsize=8.5)
    upper.set(ylabel="share solved", xscale="log", ylim=(-0.03, 1.03))
    upper.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.1), columnspacing=0.8, handlelength=1.8)
    broken = study.where("lr", "optimizer", **BROKEN).sort_values("lr")
    lines = {
        "Axon 0.6.1, SGD": broken[broken["optimizer"] == "sgd"],
        "Axon 0.6.1, Adam": broken[broken["optimizer"] == ADAM],
        "loss without guards, SGD": study.where("lr", loss="binary_cross_entropy_naive").sort_values("lr"),
        "sound, SGD": sound[sound["optimizer"] == "sgd"],
    }
    for (name, table), style in zip(lines.items(), _LINES, strict=False):
        _band(lower, table, "lr", "nonfinite", name, style)
    shown = pd.concat(lines.values())
    lower.set_title(f"(b) what goes to NaN ({_runs(shown)})", loc="left", fontsize=8.5)
    lower.set(xlabel="learning rate", ylabel="share NaN", ylim=(-0.03, 1.03))
    lower.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.32), columnspacing=0.8, handlelength=1.8)
    return figure


@styled()
def heatmaps(cells: pd.DataFrame) -> Figure:
    """Draw the outcomes over the rate and the initializer, the loss, the activation; a bar of shares for each cell.

    Args:
        cells: of `cells.Study`.
    """
    study = Cells(cells)
    inits = study.where("lr", "init")
    # Initializers that were tried at a few rates only would leave gaps.
    wide = inits.groupby("init")["lr"].transform("nunique") > 3
    losses = study.where("lr", "loss", *SWITCHES)
    versions = {"Axon 0.6.1": BROKEN, "Axon 0.7.0": NEWEST}
    for name, switches in versions.items():
        losses.loc[(losses[list(switches)] == list(switches.values())).all(axis=1), "loss"] = name
    # Combinations of the switches that no version has are left out.
    losses = losses[losses["loss"] != LOSS]
    panels = (
        ("(a) initializer", inits[wide & inits["lr"].isin((0.001, 0.01, 0.1, 1, 10))], "init"),
        ("(b) loss", losses[losses["lr"].isin((0.001, 0.01, 0.1, 1, 10, 100))], "loss"),
        (
            "(c) hidden activation",
            study.where("lr", "activation.hidden", lr=[0.01, 0.1, 1, 10, 100]),
            "activation.hidden",
        ),
    )
    rows = [table[key].nunique() for _, table, key in panels]
    figure, axes = subplots(3, 1, height=0.16 * sum(rows) + 1.9, height_ratios=rows)
    for ax, (title, table, key) in zip(axes, panels, strict=True):
        _shares(ax, table, key)
        ax.set_title(f"{title} ({_runs(table)})", loc="left", x=-0.4, fontsize=8.5)
    axes[-1].set_xlabel("learning rate")
    outcome_legend(figure, loc="outside lower center")
    return figure


def _shares(axes: Axes, table: pd.DataFrame, key: str) -> None:
    """Draw the shares of all outcomes of each cell as a stacked bar, rates from left to right, `key` downwards."""
    rates, names = sorted(table["lr"].unique()), list(dict.fromkeys(table[key]))
    for row in table.to_dict("records"):
        outcome_bar(axes, names.index(row[key]), row, float(rates.index(row["lr"])), 0.92)
    short = [name.replace("binary_cross_entropy", "bce") for name in names]
    axes.set(yticks=range(len(names)), yticklabels=short, xlim=(-0.08, len(rates)), ylim=(len(names) - 0.5, -0.5))
    axes.set(xticks=np.arange(len(rates)) + 0.46, xticklabels=[f"{rate:g}" for rate in rates])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


@styled()
def loss_curves(cells: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw the loss over time: medians and quartiles of the runs whose loss is finite.

    Args:
        cells: of `cells.Study`.
        curves: of `cells.curves`.
    """
    study = Cells(cells)
    panels = (
        ("(a) the sound network", {f"SGD {lr:g}": {"lr": lr} for lr in (0.001, 0.01, 0.1, 1.0, 10.0)}),
        (
            "(b) the loss of Axon 0.6.1",
            {f"SGD {lr:g}": BROKEN | {"lr": lr} for lr in (0.001, 0.01, 0.1, 1.0)}
            | {"Adam 0.001": BROKEN | SETTINGS["Adam 0.001"]},
        ),
    )
    figure, both = subplots(2, 1, height=5.0, sharex=True)
    for axes, (title, settings) in zip(both, panels, strict=True):
        indices = [study.one(**values) for values in settings.values()]
        for label, index, style in zip(settings, indices, _LINES, strict=False):
            table = curves[curves["cell"] == index]
            axes.plot(table["step"], table["median"], label=label, **style | {"marker": ""})
            axes.fill_between(table["step"], table["low"], table["high"], color=style["color"], alpha=0.2, linewidth=0)
        axes.set_title(f"{title} ({_runs(cells.iloc[indices])})", loc="left", fontsize=8.5)
        axes.set(xscale="log", yscale="log", ylabel="loss of the batch")
        below = -0.28 if axes is both[1] else -0.08
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.45, below), columnspacing=0.8, handlelength=1.8)
    both[1].set_xlabel("step")
    return figure


@styled()
def precision(onsets: pd.DataFrame) -> Figure:
    """Draw the logit at which a loss without guards goes to NaN in each precision, beside that where p rounds to 1.

    Args:
        onsets: of `evidence.naive_onsets`.
    """
    rounded = onsets[onsets["side"].isin(("one", "both"))]
    names = [name for name in MANTISSA if (onsets["dtype"] == name).any()]
    figure, axes = subplots(height=2.9)
    spread = np.random.default_rng(0)
    labels = []
    for x, name in enumerate(names):
        table = rounded[rounded["dtype"] == name].sort_values("logit")
        _onsets(axes, table, x + spread.uniform(-0.3, 0.3, len(table)))
        limit, bits = rounding_logit(name), MANTISSA[name] + (name in WIDER)
        axes.hlines(limit, x - 0.42, x + 0.42, color="black", linewidth=1.2)
        where: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 6.5, "bbox": _LABEL}
        axes.text(x + 0.45, limit / 1.12, f"{bits} log 2 = {limit:.1f}", **where)
        labels.append(f"{name}\nn = {len(table):,}")
    axes.plot([], [], "o", color=ORANGE, markersize=3, label="at the NaN")
    axes.plot([], [], "o", color=BLUE, markersize=3, fillstyle="none", label="one step before")
    axes.plot([], [], "-", color="black", label="p rounds to 1")
    axes.set(yscale="log", ylabel="largest logit in the batch (0.5: or less)")
    axes.set(xticks=range(len(names)), xticklabels=labels)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.8, handlelength=1.2)
    return figure


def _onsets(axes: Axes, table: pd.DataFrame, x: NDArray[np.float64]) -> None:
    """Draw the logits at the NaN and one step before, joined by a line."""
    before = table["before"].clip(lower=0.5)
    axes.vlines(x, before, table["logit"], color=GREY, linewidth=0.25, alpha=0.5)
    axes.plot(x, before, "o", color=BLUE, markersize=1.6, fillstyle="none", markeredgewidth=0.4)
    axes.plot(x, table["logit"], "o", color=ORANGE, markersize=1.8)


@styled()
def boundaries(panels: pd.DataFrame) -> Figure:
    """Draw the predictions of networks around the unit square, with the boundary between their classes.

    Args:
        panels: of `evidence.panels`.
    """
    names = list(dict.fromkeys(panels["panel"]))
    figure, grid = subplots(2, 3, height=2.5)
    for axes, name in zip(grid.flat, names, strict=True):
        table = panels[panels["panel"] == name]
        wide = table.pivot(index="x2", columns="x1", values="prediction")
        x, y, values = wide.columns.to_numpy(), wide.index.to_numpy(), wide.to_numpy()
        shades = axes.pcolormesh(x, y, values, cmap="PuOr_r", vmin=0, vmax=1, rasterized=True)
        if values.min() < 0.5 < values.max():
            axes.contour(x, y, values, levels=[0.5], colors="black", linewidths=1)
        for x1, x2, marker in (((0, 1), (0, 1), "o"), ((0, 1), (1, 0), "s")):
            axes.scatter(x1, x2, marker=marker, s=14, facecolor="white", edgecolor="black", zorder=3, clip_on=False)
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal", xticks=[0, 1], yticks=[0, 1])
        axes.set_title(name, fontsize=8)
    figure.colorbar(shades, ax=grid, label="prediction", shrink=0.6, ticks=[0, 0.5, 1])
    figure.supxlabel("x1 (circles: false, squares: true; one network each)", fontsize=8)
    figure.supylabel("x2", fontsize=8)
    return figure


@styled()
def gradients(courses: pd.DataFrame) -> Figure:
    """Draw gradient norm and largest logit over time in some settings: medians and quartiles.

    Args:
        courses: of `evidence.courses`.
    """
    panels = (("grad_norm", "(a) norm of the gradient"), ("max_abs_logit", "(b) largest |logit|"))
    figure, both = subplots(2, 1, height=4.4, sharex=True)
    for axes, (measure, title) in zip(both, panels, strict=True):
        chosen = courses[courses["measure"] == measure]
        for (name, table), style in zip(chosen.groupby("setting", sort=False), _LINES, strict=False):
            axes.plot(table["step"], table["median"], label=str(name), **(style | {"marker": ""}))
            axes.fill_between(table["step"], table["low"], table["high"], color=style["color"], alpha=0.2, linewidth=0)
        axes.set(xscale="log")
        if measure == "grad_norm":
            axes.set_yscale("symlog", linthresh=1e-6)
            axes.set(ylim=(0, 1e6), yticks=[0, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_yscale("log")
        axes.set_title(f"{title} (n = {chosen['n'].iloc[0]})", loc="left", fontsize=8.5)
    edge = round(OVERFLOW, 2)  # drawn where its label says
    both[1].axhline(edge, color=GREY, linestyle=":", linewidth=0.9)
    both[1].text(1, 95, f"{edge}: beyond, e^|z| is infinite in float32", va="bottom", color=GREY, fontsize=7)
    both[1].set_xlabel("step")
    figure.legend(*both[0].get_legend_handles_labels(), ncols=2, loc="outside lower center", columnspacing=1)
    return figure


@styled()
def fixes(claims: pd.DataFrame) -> Figure:
    """Draw the effects of all claims with their intervals, those that are rates and those that are steps.

    Args:
        claims: of `claims.verdicts`.
    """
    steps = claims["test"].str.contains("Wilcoxon")
    parts = (claims[~steps].reset_index(drop=True), claims[steps].reset_index(drop=True))
    heights = [len(part) for part in parts]
    figure, both = subplots(2, 1, height=0.17 * sum(heights) + 1.5, height_ratios=heights)
    for axes, part in zip(both, parts, strict=True):
        for y, row in enumerate(part.to_dict("records")):
            marker, colour = VERDICT_MARKS[row["verdict"]]
            spread = [[row["effect"] - row["low"]], [row["high"] - row["effect"]]]
            axes.errorbar(
                row["effect"], y, xerr=np.maximum(spread, 0), fmt=marker, color=colour, markersize=4, capsize=2
            )
        labels = [f"{row['claim']}  (n = {row['n']:,})" for row in part.to_dict("records")]
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set(yticks=range(len(part)), yticklabels=labels, ylim=(len(part) - 0.5, -0.5))
        axes.tick_params(axis="y", labelsize=6.5, length=0)
    both[0].set(xlabel="share, or difference of shares", xlim=(-1.05, 1.05))
    both[1].set_xlabel("steps later (negative: sooner)")
    for verdict, (marker, colour) in VERDICT_MARKS.items():
        both[0].plot([], [], marker, color=colour, markersize=4, label=verdict)
    figure.legend(
        *both[0].get_legend_handles_labels(), ncols=4, loc="outside lower center", columnspacing=0.8, handlelength=1
    )
    return figure


@styled()
def importance(table: pd.DataFrame) -> Figure:
    """Draw the share of the variance of success that each factor explains, alone and in pairs.

    Args:
        table: of `evidence.importance`.
    """
    figure, axes = subplots(height=0.17 * len(table) + 0.8)
    y = np.arange(len(table))
    spread = [table["share"] - table["low"], table["high"] - table["share"]]
    colours = np.where(table["term"].str.contains(" x "), ORANGE, BLUE)
    colours[table["term"] == "higher order"] = GREY
    axes.barh(y, table["share"], color=colours, height=0.7)
    axes.errorbar(table["share"], y, xerr=np.maximum(spread, 0), fmt="none", color="black", capsize=2, linewidth=0.8)
    axes.set(yticks=y, yticklabels=table["term"], ylim=(len(table) - 0.5, -0.5))
    axes.set_xlabel("share of the variance")
    axes.set_title(f"success on sound networks (n = {table['n'].iloc[0]:,})", loc="left", x=-0.5, fontsize=8.5)
    axes.legend(
        handles=[Patch(color=BLUE, label="one factor"), Patch(color=ORANGE, label="two together")],
        loc="lower right",
    )
    return figure


@styled()
def time_to_solve(survival: pd.DataFrame) -> Figure:
    """Draw the share of runs that have not solved XOR yet, over the steps, with 95 % intervals.

    Args:
        survival: of `evidence.survival`.
    """
    figure, axes = subplots(height=2.6)
    for (name, table), style in zip(survival.groupby("setting", sort=False), _LINES, strict=False):
        line = style | {"marker": ""}
        axes.plot(table["step"], table["unsolved"], drawstyle="steps-post", label=str(name), **line)
        axes.fill_between(
            table["step"], table["low"], table["high"], step="post", color=style["color"], alpha=0.2, linewidth=0
        )
    axes.set(xscale="log", xlabel="step", ylabel="share not solved yet", ylim=(-0.02, 1.02))
    axes.set_title(f"n = {survival['n'].min():,} each; marks: censored there", loc="left", fontsize=8.5)
    # After all lines, so that no line hides a mark.
    for (_, table), style in zip(survival.groupby("setting", sort=False), _LINES, strict=False):
        last = table.iloc[-1]
        if last["unsolved"] > 0:
            axes.plot(last["step"], last["unsolved"], "|", color=style["color"], markersize=7)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=3, columnspacing=0.8, handlelength=1.8)
    return figure
