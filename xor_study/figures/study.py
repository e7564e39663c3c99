"""The figures of the whole study. Each takes tables of `results/reference`, or of a reproduction."""

from __future__ import annotations

import itertools
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from xor_study.analysis import axon
from xor_study.analysis.cells import CELL, Cells
from xor_study.figures.style import BLUE, COLUMN, GREEN, GREY, ORANGE, PALETTE, STYLE, outcome_bar, outcome_legend

_BROKEN = axon.cell(axon.BROKEN)

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


def symptom(table: pd.DataFrame) -> Figure:
    """Return what Axon's loop printed: the mean of all losses so far, and how many runs are NaN.

    Args:
        table: of `probes.symptom`.
    """
    with plt.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(COLUMN, 3.6), sharex=True, height_ratios=(2, 1))
        upper.plot(table["step"], table["median"], color=ORANGE, label="median")
        upper.fill_between(
            table["step"], table["low"], table["high"], color=ORANGE, alpha=0.25, lw=0, label="quartiles"
        )
        example = table.dropna(subset="example")
        label = f"seed {table['example_seed'].iloc[0]}, NaN from here"
        upper.plot(example["step"], example["example"], color="black", linewidth=0.9)
        upper.plot(example["step"].iloc[-1], example["example"].iloc[-1], "x", color="black", label=label)
        upper.axhline(0.77, color=GREY, linestyle=":", linewidth=0.9)
        upper.text(10000, 0.74, "the report's 0.77", va="top", ha="right", color=GREY)
        upper.set(
            xscale="log",
            yscale="log",
            ylabel="mean loss so far",
            yticks=[0.5, 1, 2, 5],
            yticklabels=["0.5", "1", "2", "5"],
        )
        upper.minorticks_off()
        upper.set_title(f"Axon 0.6.1, SGD without a rate (n = {table['n'].iloc[0]})", loc="left", fontsize=8.5)
        upper.legend(loc="upper left", bbox_to_anchor=(0, 0.95))
        lower.plot(table["step"], table["nan"], color=ORANGE, drawstyle="steps-post")
        lower.fill_between(
            table["step"], table["nan_low"], table["nan_high"], step="post", color=ORANGE, alpha=0.25, lw=0
        )
        lower.axvline(1000, color=GREY, linestyle=":", linewidth=0.9)
        lower.text(1000, 0.5, "one epoch ", ha="right", color=GREY)
        lower.set(xlabel="step", ylabel="share NaN", ylim=(0, 0.6))
    return figure


def learning_rate(cells: pd.DataFrame) -> Figure:
    """Return which share of runs solves XOR and which goes to NaN, over the rate.

    Args:
        cells: of `cells.Study`.
    """
    found = Cells(cells)
    with plt.rc_context(STYLE):
        figure, (upper, lower) = plt.subplots(2, 1, figsize=(COLUMN, 4.9), sharex=True, height_ratios=(1.35, 1))
        sound = found.where("lr", "optimizer")
        sound = sound[sound["n"] == sound["n"].max()].sort_values("lr")
        for (name, table), style in zip(sound.groupby("optimizer", sort=False), _LINES, strict=False):
            if name != "polaris_adam":  # it is Adam with one more epsilon; the lines coincide
                _band(upper, table, "lr", "solved", str(name), style)
        upper.set_title(f"(a) the sound network ({_runs(sound)})", loc="left", fontsize=8.5)
        upper.set(ylabel="share solved", xscale="log", ylim=(-0.03, 1.03))
        upper.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.1), columnspacing=0.8, handlelength=1.8)
        broken = found.where("lr", "optimizer", **_BROKEN).sort_values("lr")
        lines = {
            "Axon 0.6.1, SGD": broken[broken["optimizer"] == "sgd"],
            "Axon 0.6.1, Adam": broken[broken["optimizer"] == "polaris_adam"],
            "loss without guards, SGD": found.where("lr", loss="binary_cross_entropy_naive").sort_values("lr"),
            "sound, SGD": sound[sound["optimizer"] == "sgd"],
        }
        for (name, table), style in zip(lines.items(), _LINES, strict=False):
            _band(lower, table, "lr", "nonfinite", name, style)
        shown = pd.concat(lines.values())
        lower.set_title(f"(b) what goes to NaN ({_runs(shown)})", loc="left", fontsize=8.5)
        lower.set(xlabel="learning rate", ylabel="share NaN", ylim=(-0.03, 1.03))
        lower.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.32), columnspacing=0.8, handlelength=1.8)
    return figure


def heatmaps(cells: pd.DataFrame) -> Figure:
    """Return how runs end over the rate and the initializer, the loss, the activation; a bar of shares for each cell.

    Args:
        cells: of `cells.Study`.
    """
    found = Cells(cells)
    inits = found.where("lr", "init")
    wide = inits.groupby("init")["lr"].transform("nunique") > 3
    switches = [key for key in CELL if key.startswith("loss.")]
    losses = found.where("lr", "loss", *switches)
    names = losses["loss"].where(losses["loss.logits_visible"].isna(), losses["loss.logits_visible"].map(_axon_name))
    kept = names.notna() & ~(
        (losses["loss.clip_gradient"] == "correct") | (losses["loss.sigmoid_gradient"] == "stable")
    )
    panels = (
        ("(a) initializer", inits[wide & inits["lr"].isin((0.001, 0.01, 0.1, 1, 10))], "init"),
        ("(b) loss", losses.assign(loss=names)[kept & losses["lr"].isin((0.001, 0.01, 0.1, 1, 10, 100))], "loss"),
        (
            "(c) hidden activation",
            found.where("lr", "activation.hidden", lr=[0.01, 0.1, 1, 10, 100]),
            "activation.hidden",
        ),
    )
    rows = [table[key].nunique() for _, table, key in panels]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, 1, figsize=(COLUMN, 0.16 * sum(rows) + 1.9), height_ratios=rows)
        for ax, (title, table, key) in zip(axes, panels, strict=True):
            _shares(ax, table, key)
            ax.set_title(f"{title} ({_runs(table)})", loc="left", x=-0.4, fontsize=8.5)
        axes[-1].set_xlabel("learning rate")
        outcome_legend(figure, loc="outside lower center")
    return figure


def _axon_name(visible: Any) -> str:
    return "Axon 0.7.0" if visible else "Axon 0.6.1"


def _shares(axes: Axes, table: pd.DataFrame, key: str) -> None:
    """Draw the shares of all outcomes of each cell as a stacked bar, rates from left to right, `key` downwards."""
    rates, names = sorted(table["lr"].unique()), list(dict.fromkeys(table[key]))
    for row in table.to_dict("records"):
        outcome_bar(axes, names.index(row[key]), row, float(rates.index(row["lr"])), 0.92)
    short = [name.replace("binary_cross_entropy", "bce") for name in names]
    axes.set(yticks=range(len(names)), yticklabels=short, xlim=(-0.08, len(rates)), ylim=(len(names) - 0.5, -0.5))
    axes.set(xticks=[place + 0.46 for place in range(len(rates))], xticklabels=[f"{rate:g}" for rate in rates])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def loss_curves(cells: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Return the loss over time: medians and quartiles of the runs whose loss is finite.

    Args:
        cells: of `cells.Study`.
        curves: of `cells.curves`.
    """
    found = Cells(cells)
    panels = (
        ("(a) the sound network", {f"SGD {lr:g}": {"lr": lr} for lr in (0.001, 0.01, 0.1, 1.0, 10.0)}),
        (
            "(b) the loss of Axon 0.6.1",
            {f"SGD {lr:g}": _BROKEN | {"lr": lr} for lr in (0.001, 0.01, 0.1, 1.0)}
            | {"Adam 0.001": _BROKEN | {"optimizer": "polaris_adam", "lr": 0.001}},
        ),
    )
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(2, 1, figsize=(COLUMN, 5.0), sharex=True)
        for axes, (title, settings) in zip(both, panels, strict=True):
            places = [found.one(**values) for values in settings.values()]
            for label, place, style in zip(settings, places, _LINES, strict=False):
                table = curves[curves["cell"] == place]
                line = style | {"marker": ""}
                axes.plot(table["step"], table["median"], label=label, **line)
                axes.fill_between(
                    table["step"], table["low"], table["high"], color=style["color"], alpha=0.2, linewidth=0
                )
            axes.set_title(f"{title} ({_runs(cells.iloc[places])})", loc="left", fontsize=8.5)
            axes.set(xscale="log", yscale="log", ylabel="loss of the batch")
            below = -0.28 if axes is both[1] else -0.08
            axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.45, below), columnspacing=0.8, handlelength=1.8)
        both[1].set_xlabel("step")
    return figure


def precision(onsets: pd.DataFrame) -> Figure:
    """Return at which logit a loss without guards goes to NaN in each precision, beside the logit where p rounds to 1.

    Args:
        onsets: of `probes.naive_onsets`.
    """
    names = [name for name in MANTISSA if (onsets["dtype"] == name).any()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.9))
        spread = np.random.default_rng(0)
        for place, name in enumerate(names):
            table = onsets[(onsets["dtype"] == name) & onsets["side"].isin(("one", "both"))].sort_values("logit")
            x = place + spread.uniform(-0.3, 0.3, len(table))
            axes.vlines(x, table["before"].clip(lower=0.5), table["logit"], color=GREY, linewidth=0.25, alpha=0.5)
            axes.plot(
                x,
                table["before"].clip(lower=0.5),
                "o",
                color=BLUE,
                markersize=1.6,
                fillstyle="none",
                markeredgewidth=0.4,
            )
            axes.plot(x, table["logit"], "o", color=ORANGE, markersize=1.8)
            limit = rounding_logit(name)
            bits = MANTISSA[name] + (name in WIDER)
            axes.hlines(limit, place - 0.42, place + 0.42, color="black", linewidth=1.2)
            axes.text(
                place + 0.45,
                limit / 1.12,
                f"{bits} log 2 = {limit:.1f}",
                ha="right",
                va="top",
                fontsize=6.5,
                bbox=_LABEL,
            )
        axes.plot([], [], "o", color=ORANGE, markersize=3, label="at the NaN")
        axes.plot([], [], "o", color=BLUE, markersize=3, fillstyle="none", label="one step before")
        axes.plot([], [], "-", color="black", label="p rounds to 1")
        counts = [int(((onsets["dtype"] == name) & onsets["side"].isin(("one", "both"))).sum()) for name in names]
        labels = [f"{name}\nn = {count:,}" for name, count in zip(names, counts, strict=True)]
        axes.set(
            yscale="log",
            ylabel="largest logit in the batch (0.5: or less)",
            xticks=range(len(names)),
            xticklabels=labels,
        )
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.8, handlelength=1.2)
    return figure


def boundaries(panels: pd.DataFrame) -> Figure:
    """Return what networks answer around the unit square, with the boundary between their classes.

    Args:
        panels: of `probes.panels`.
    """
    names = list(dict.fromkeys(panels["panel"]))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 3, figsize=(COLUMN, 2.5))
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


def gradients(courses: pd.DataFrame) -> Figure:
    """Return gradient norm and largest logit over time in some settings: medians and quartiles.

    Args:
        courses: of `probes.courses`.
    """
    panels = (("grad_norm", "(a) norm of the gradient"), ("max_abs_logit", "(b) largest |logit|"))
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(2, 1, figsize=(COLUMN, 4.4), sharex=True)
        for axes, (measure, title) in zip(both, panels, strict=True):
            chosen = courses[courses["measure"] == measure]
            for (name, table), style in zip(chosen.groupby("setting", sort=False), _LINES, strict=False):
                axes.plot(table["step"], table["median"], label=str(name), **(style | {"marker": ""}))
                axes.fill_between(
                    table["step"], table["low"], table["high"], color=style["color"], alpha=0.2, linewidth=0
                )
            axes.set(xscale="log")
            if measure == "grad_norm":
                axes.set_yscale("symlog", linthresh=1e-6)
                axes.set(ylim=(0, 1e6), yticks=[0, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
                axes.yaxis.set_minor_locator(NullLocator())
            else:
                axes.set_yscale("log")
            axes.set_title(f"{title} (n = {chosen['n'].iloc[0]})", loc="left", fontsize=8.5)
        both[1].axhline(axon.OVERFLOW, color=GREY, linestyle=":", linewidth=0.9)
        both[1].text(1, 95, "88.72: beyond, e^|z| is infinite in float32", va="bottom", color=GREY, fontsize=7)
        both[1].set_xlabel("step")
        figure.legend(*both[0].get_legend_handles_labels(), ncols=2, loc="outside lower center", columnspacing=1)
    return figure


def monitors(roc: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Return which monitors tell failing runs from sound ones, and how early.

    Args:
        roc: of `monitors.roc`.
        summary: of `monitors.summary`.
    """
    names = [name for name in dict.fromkeys(summary["study"]) if name != "all"]
    kinds = list(dict.fromkeys(summary["monitor"]))
    styles = dict(zip(kinds, _LINES, strict=False))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(COLUMN, 4.0))
        for axes, name, letter in zip(grid.flat, names, "abc", strict=False):
            for kind in kinds:
                curve = roc[(roc["study"] == name) & (roc["monitor"] == kind)].sort_values(["false", "true"])
                axes.plot(curve["false"], curve["true"], **(styles[kind] | {"marker": ""}))
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.5, linestyle=":")
            part = summary[summary["study"] == name].iloc[0]
            axes.set_title(f"({letter}) {name}", loc="left", fontsize=8.5)
            axes.text(1, 0.02, f"n = {2 * part['n']:.0f} NaN,\n{2 * part['m']:.0f} solved", ha="right", fontsize=7)
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        grid[0, 0].set_ylabel("share of NaN seen")
        grid[1, 0].set(ylabel="share of NaN seen", xlabel="false alarms")
        axes = grid[1, 1]
        for place, name in enumerate(names):
            for offset, kind in enumerate(kinds):
                row = summary[(summary["study"] == name) & (summary["monitor"] == kind)].iloc[0]
                y = place + 0.18 * (offset - 1.5)
                spread = [[row["lead_median"] - row["lead_low"]], [row["lead_high"] - row["lead_median"]]]
                colour, marker = styles[kind]["color"], styles[kind]["marker"]
                axes.errorbar(row["lead_median"], y, xerr=spread, fmt=marker, color=colour, markersize=3, linewidth=0.9)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xscale="log")
        axes.set_xlabel("steps ahead")
        axes.set_title("(d) how early", loc="left", fontsize=8.5)
        for kind in kinds:
            axes.plot([], [], label=kind, **styles[kind])
        figure.legend(*axes.get_legend_handles_labels(), ncols=2, loc="outside lower center", columnspacing=1)
    return figure


def fixes(claims: pd.DataFrame) -> Figure:
    """Return the effects of all claims with their intervals, those that are rates and those that are steps.

    Args:
        claims: of `claims.verdicts`.
    """
    steps = claims["test"].str.contains("Wilcoxon")
    with plt.rc_context(STYLE):
        parts = (claims[~steps].reset_index(drop=True), claims[steps].reset_index(drop=True))
        heights = [len(part) for part in parts]
        figure, both = plt.subplots(2, 1, figsize=(COLUMN, 0.17 * sum(heights) + 1.5), height_ratios=heights)
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


def importance(table: pd.DataFrame) -> Figure:
    """Return which share of the variance of success each factor explains, alone and in pairs.

    Args:
        table: of `probes.importance`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 0.17 * len(table) + 0.8))
        y = np.arange(len(table))
        spread = [table["share"] - table["low"], table["high"] - table["share"]]
        colours = [BLUE if " x " not in term else ORANGE if term != "higher order" else GREY for term in table["term"]]
        colours = [
            GREY if term == "higher order" else colour for term, colour in zip(table["term"], colours, strict=True)
        ]
        axes.barh(y, table["share"], color=colours, height=0.7)
        axes.errorbar(
            table["share"], y, xerr=np.maximum(spread, 0), fmt="none", color="black", capsize=2, linewidth=0.8
        )
        axes.set(yticks=y, yticklabels=table["term"], ylim=(len(table) - 0.5, -0.5))
        axes.set_xlabel("share of the variance")
        axes.set_title(f"success on sound networks (n = {table['n'].iloc[0]:,})", loc="left", x=-0.5, fontsize=8.5)
        axes.legend(
            handles=[Patch(color=BLUE, label="one factor"), Patch(color=ORANGE, label="two together")],
            loc="lower right",
        )
    return figure


def time_to_solve(survival: pd.DataFrame) -> Figure:
    """Return which share of runs has not solved XOR yet, over the steps, with 95 % intervals.

    Args:
        survival: of `probes.survival`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.6))
        for (name, table), style in zip(survival.groupby("setting", sort=False), _LINES, strict=False):
            line = style | {"marker": ""}
            axes.plot(table["step"], table["unsolved"], drawstyle="steps-post", label=str(name), **line)
            axes.fill_between(
                table["step"], table["low"], table["high"], step="post", color=style["color"], alpha=0.2, linewidth=0
            )
        axes.set(xscale="log", xlabel="step", ylabel="share not solved yet", ylim=(-0.02, 1.02))
        axes.set_title(f"n = {survival['n'].min():,} each; marks: censored there", loc="left", fontsize=8.5)
        for (_, table), style in zip(survival.groupby("setting", sort=False), _LINES, strict=False):
            last = table.iloc[-1]
            if last["unsolved"] > 0:
                axes.plot(last["step"], last["unsolved"], "|", color=style["color"], markersize=7)
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=3, columnspacing=0.8, handlelength=1.8)
    return figure
