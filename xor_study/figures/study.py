"""The figures of the whole study; each takes tables of `results/reference`, or of a reproduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from xor_study.analysis.axon import ADAM, BROKEN, LOSS, NEWEST, OVERFLOW, SETTINGS, SWITCHES
from xor_study.analysis.cells import Cells
from xor_study.figures.panels import (
    draw_predictions,
    heat_map,
    log_rates,
    loss_bands,
    share_curves,
    shares_bar,
    survival_curves,
    variance_bars,
)
from xor_study.figures.style import (
    BROKEN_COLOUR,
    GREY,
    LIMIT,
    NAN,
    SOUND,
    STROKES,
    TALLEST,
    UNGUARDED,
    band,
    legend_below,
    level_styles,
    styled,
    subplots,
)
from xor_study.figures.words import count_words, sentence_words, value_words

MANTISSA = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Significant bits of each precision, the hidden one included."""

WIDER = ("bfloat16", "float16")
"""Precisions whose sigmoid torch evaluates in float32 and then rounds."""


def rounding_bits(dtype: str) -> int:
    """Return how many times log 2 a logit must be for a probability to be 1 in a precision: p or p + 1 of its p bits.

    Numbers just below 1 are 2^-p apart, so 1 - e^-z, known exactly and then rounded, becomes 1 where e^-z <= 2^-(p+1):
    z = (p + 1) log 2. Evaluated in the precision itself, 1 / (1 + e^-z) is 1 as soon as 1 + e^-z is, and numbers just
    above 1 are 2^-(p-1) apart: z = p log 2. Ties go to 1, which is even.
    """
    return MANTISSA[dtype] + (dtype in WIDER)


def rounding_logit(dtype: str) -> float:
    """Return the logit from which on a probability is 1 in a precision: `rounding_bits` times log 2."""
    return rounding_bits(dtype) * math.log(2)


@styled()
def symptom(table: pd.DataFrame) -> Figure:
    """Draw the output of Axon's loop: the mean of all losses so far, and the share of runs that is NaN.

    Args:
        table: of `evidence.symptom`.
    """
    figure, (upper, lower) = subplots(2, 1, height=3.9, sharex=True, height_ratios=(2, 1.1))
    style: dict[str, Any] = {"color": BROKEN_COLOUR, "label": "median; band: quartiles"}
    band(upper, table["step"], table["median"], (table["low"], table["high"]), **style)
    example = table.dropna(subset="example")
    label = f"the run of seed {table['example_seed'].iloc[0]}; cross: NaN from there on"
    upper.plot(example["step"], example["example"], color="black", linewidth=0.9, linestyle="--", label=label)
    upper.plot(example["step"].iloc[-1], example["example"].iloc[-1], "X", color="black", markersize=5)
    upper.axhline(0.77, **LIMIT, label="0.77, which the report prints")
    ticks = [0.5, 1, 2, 5, 10]
    upper.set(xscale="log", yscale="log", ylabel="mean of all losses so far", ylim=(0.5, 30))
    upper.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    upper.minorticks_off()
    upper.set_title(f"Axon 0.6.1, SGD at its default rate ({count_words(table['n'])})")
    upper.legend(loc="upper left")
    ends = table["nan_low"], table["nan_high"]
    band(lower, table["step"], table["nan"], ends, step="post", color=NAN, label="share; band: 95 % interval")
    lower.axvline(1000, **LIMIT, label="end of the first epoch")
    lower.set(xlabel="step", ylabel="share NaN", ylim=(0, 0.15 + 1.05 * table["nan_high"].max()))
    lower.legend(loc="upper left")
    return figure


@styled()
def learning_rate(cells: pd.DataFrame) -> Figure:
    """Draw the shares of runs that solve XOR and that go to NaN, over the rate.

    Args:
        cells: of `cells.Study`.
    """
    study = Cells(cells)
    figure, (upper, lower) = subplots(2, 1, height=4.5, height_ratios=(1.2, 1))
    sound = study.where("lr", "optimizer")
    sound = sound[sound["n"] == sound["n"].max()]
    sound = sound[sound["optimizer"] != ADAM]  # it is Adam with one more epsilon; the lines coincide
    names = list(dict.fromkeys(sound["optimizer"]))
    styles = dict(zip(map(value_words, names), level_styles("optimizer", names), strict=True))
    share_curves(upper, sound.assign(label=sound["optimizer"].map(value_words)), "lr", "solved", styles)
    upper.set_title(f"(a) sound networks ({count_words(sound['n'])})")
    broken, adam = (
        study.where("lr", "optimizer", **BROKEN),
        {"linestyle": "--", "marker": "s", "markersize": 6, "fillstyle": "none"},
    )
    tables = {
        "Axon 0.6.1, SGD": (broken[broken["optimizer"] == "sgd"], {"color": BROKEN_COLOUR, "marker": "o"}),
        "Axon 0.6.1, Adam": (broken[broken["optimizer"] == ADAM], {"color": BROKEN_COLOUR} | adam),
        "unguarded loss, SGD": (
            study.where("lr", loss="binary_cross_entropy_naive"),
            {"color": UNGUARDED, "marker": "D", "linestyle": ":"},
        ),
        "sound, SGD": (
            sound[sound["optimizer"] == "sgd"],
            {"color": SOUND, "marker": "^", "linestyle": "-."},
        ),
    }
    shown = pd.concat([table.assign(label=label) for label, (table, _) in tables.items()])
    share_curves(lower, shown, "lr", "nonfinite", {label: style for label, (_, style) in tables.items()})
    lower.set_title(f"(b) networks that go to NaN ({count_words(shown['n'])})")
    for axes, below in ((upper, -0.3), (lower, -0.36)):
        log_rates(axes, shown["lr"])
        axes.set(
            xlabel="learning rate (bands: 95 % intervals)", xlim=(shown["lr"].min() / 1.5, shown["lr"].max() * 1.5)
        )
        columns = 3 if axes is upper else 2
        where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, below)}
        axes.legend(ncols=columns, columnspacing=1, handlelength=2.4, **where)
    return figure


@styled()
def heatmaps(cells: pd.DataFrame) -> Figure:
    """Draw the shares of runs that solve XOR and that go to NaN over the rate and three other suspects.

    Args:
        cells: of `cells.Study`.
    """
    study = Cells(cells)
    inits = study.where("lr", "init")
    # Initializers that were tried at a few rates only would leave gaps.
    inits = inits[inits.groupby("init")["lr"].transform("nunique") > 3]
    losses = study.where("lr", "loss", *SWITCHES)
    for name, switches in {"Axon 0.6.1": BROKEN, "Axon 0.7.0": NEWEST}.items():
        losses.loc[(losses[list(switches)] == list(switches.values())).all(axis=1), "loss"] = name
    losses = losses[losses["loss"] != LOSS]  # combinations of the switches that no version has
    panels = {
        "(a) initializer": (inits, "init"),
        "(b) loss": (losses, "loss"),
        "(c) hidden activation": (study.where("lr", "activation.hidden"), "activation.hidden"),
    }
    rates = {f"$10^{{{power}}}$": 10.0**power for power in range(-3, 3)}
    heights = [table[key].nunique() for table, key in panels.values()]
    figure, grid = subplots(3, 2, height=4.5, height_ratios=heights, sharex="col", sharey="row")
    for axes, (title, (table, key)) in zip(grid, panels.items(), strict=True):
        table = table[table["lr"].isin(list(rates.values()))]
        ticks = {"x": rates, "y": {value_words(level): level for level in dict.fromkeys(table[key])}}
        meshes = [
            heat_map(ax, table, "lr", key, outcome, ticks)
            for ax, outcome in zip(axes, ("solved", "nonfinite"), strict=True)
        ]
        axes[0].set_title(f"{title} ({count_words(table['n'])})", x=-0.95)
        axes[0].tick_params(axis="y", labelsize=6)
        axes[1].tick_params(axis="y", labelleft=False)
    for column, outcome in enumerate(("solved", "nonfinite")):
        grid[-1, column].tick_params(axis="x", labelsize=5)
        shares_bar(figure, meshes[column], grid[:, column], outcome)
    figure.supxlabel("learning rate (hatched: not run)", fontsize=8)
    return figure


@styled()
def loss_curves(cells: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw the loss over time: medians and quartiles of the runs whose loss is finite.

    Args:
        cells: of `cells.Study`.
        curves: of `cells.curves`.
    """
    study = Cells(cells)
    rates = (0.001, 0.01, 0.1, 1.0, 10.0)
    styles = level_styles("lr", rates)
    adam = level_styles("optimizer", ["adam"])[0]
    sound = [study.one(lr=lr) for lr in rates]
    broken = [study.one(**BROKEN, lr=lr) for lr in rates[:-1]]
    settings = BROKEN | SETTINGS["Adam 0.001"]
    figure, (upper, lower) = subplots(2, 1, height=4.3, sharex=True)
    names = [f"SGD, rate {lr:g}" for lr in rates]
    tables: dict[Any, pd.DataFrame] = dict(iter(curves.groupby("cell")))
    loss_bands(upper, {name: tables[cell] for name, cell in zip(names, sound, strict=True)}, styles)
    upper.set_title(f"(a) sound network ({count_words(cells['n'].iloc[sound])})")
    lines = {name: tables[cell] for name, cell in zip(names, broken, strict=False)}
    lines |= {f"Adam, rate {settings['lr']:g}": tables[study.one(**settings)]}
    loss_bands(lower, lines, [*styles[:-1], adam])
    lower.set_title(f"(b) Axon 0.6.1 ({count_words(cells['n'].iloc[broken])})")
    lower.set_xlabel("step (median of runs still finite; bands: quartiles)")
    handles = {label: handle for axes in (upper, lower) for handle, label in zip(*_handles(axes), strict=True)}
    figure.legend(list(handles.values()), list(handles), ncols=3, loc="outside lower center", columnspacing=1)
    return figure


def _handles(axes: Axes) -> tuple[list[Any], list[Any]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, labels


@styled()
def precision(onsets: pd.DataFrame) -> Figure:
    """Draw the logit at which a loss without guards goes to NaN in each precision, beside that where p rounds to 1.

    Args:
        onsets: of `evidence.naive_onsets`.
    """
    rounded = onsets[onsets["side"].isin(("one", "both"))]
    names = [name for name in MANTISSA if (onsets["dtype"] == name).any()]
    figure, grid = subplots(2, 2, height=3.4, sharex=True, sharey=True)
    for axes, name, letter in zip(grid.flat, names, "abcd", strict=False):
        table = rounded[rounded["dtype"] == name]
        _distribution(axes, table["before"].dropna(), "one step before", color=GREY, linestyle="--")
        _distribution(axes, table["logit"], "at the NaN", color=NAN)
        bits = rounding_bits(name)
        axes.axvline(rounding_logit(name), **LIMIT, label=r"$p$ rounds to 1")
        axes.set_title(f"({letter}) {name} (n = {len(table):,})\n${bits} \\log 2 = {rounding_logit(name):.1f}$")
        axes.set_xscale("symlog", linthresh=5)
        axes.set(xlim=(-600, 800), ylim=(0, 1.02), yticks=[0, 0.5, 1])
        axes.set_xticks([-100, 0, 10, 100], ["-100", "0", "10", "100"])
        axes.xaxis.set_minor_locator(NullLocator())
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("largest logit $z$")
    figure.supylabel("share of runs at or below", fontsize=8)
    legend_below(figure, grid[0, 0], 3)
    return figure


def _distribution(axes: Axes, values: pd.Series[float], label: str, **style: Any) -> None:
    """Draw which share of some values is at or below each of them."""
    ordered = np.sort(values.to_numpy(float))
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), drawstyle="steps-post", label=label, **style)


@styled()
def boundaries(panels: pd.DataFrame) -> Figure:
    """Draw the predictions of networks around the unit square, with the boundary between their classes.

    Args:
        panels: of `evidence.panels`.
    """
    names = list(dict.fromkeys(panels["panel"]))
    figure, grid = subplots(2, 3, height=2.5)
    for axes, name, letter in zip(grid.flat, names, "abcdef", strict=True):
        table = panels[panels["panel"] == name]
        wide = table.pivot(index="x2", columns="x1", values="prediction")
        shades = draw_predictions(
            axes, wide.columns.to_numpy(), wide.index.to_numpy(), wide.to_numpy(), (0.0, 1.0), 0.5, size=12
        )
        axes.set(xticks=[0, 1], yticks=[0, 1])
        axes.set_title(f"({letter}) {sentence_words(name)}", fontsize=7)
    bar = figure.colorbar(shades, ax=grid, shrink=0.7, ticks=[0, 0.5, 1], aspect=15)
    bar.set_label("prediction (line: 0.5)")
    figure.supxlabel("$x_1$ (circles: false, squares: true; one network each)", fontsize=8)
    figure.supylabel("$x_2$", fontsize=8)
    return figure


@styled()
def gradients(courses: pd.DataFrame) -> Figure:
    """Draw gradient norm, largest logit and saturation over time in some settings: medians and quartiles.

    Args:
        courses: of `evidence.courses`.
    """
    measures = [name for name in ("grad_norm", "max_abs_logit", "saturated") if (courses["measure"] == name).any()]
    figure, panels = subplots(len(measures), 1, height=4.4, sharex=True)
    for axes, measure in zip(panels, measures, strict=True):
        chosen = courses[courses["measure"] == measure]
        for (name, table), style in zip(chosen.groupby("setting", sort=False), _versions(chosen), strict=True):
            label = sentence_words(str(name))
            band(axes, table["step"], table["median"], (table["low"], table["high"]), label=label, **style)
        _MEASURES[measure](axes)
    panels[0].set_title(f"(a) gradient ({count_words(courses['n'])})")
    panels[-1].set_xlabel("step (lines: medians; bands: quartiles)")
    legend_below(figure, panels[0], 2, columnspacing=0.8, handlelength=2.0)
    return figure


def _gradient_axes(axes: Axes) -> None:
    axes.set(xscale="log", ylabel=r"norm $\|\nabla L\|$")
    axes.set_yscale("symlog", linthresh=1e-6, linscale=2)
    axes.set(ylim=(-1e-7, 1e6), yticks=[0, 1e-6, 1e-3, 1, 1e3, 1e6])
    axes.yaxis.set_minor_locator(NullLocator())


def _logit_axes(axes: Axes) -> None:
    axes.axhline(OVERFLOW, **LIMIT)
    limit = rf"above {OVERFLOW:.2f}, $e^{{|z|}}$ is infinite in float32"
    axes.text(1, 1.15 * OVERFLOW, limit, va="bottom", fontsize=7)
    axes.set(yscale="log", ylabel="largest $|z|$", title="(b) logits", ylim=(None, 1000))


def _saturation_axes(axes: Axes) -> None:
    axes.set(ylabel="share", title="(c) saturated hidden outputs", ylim=(-0.03, 1.03))


_MEASURES = {"grad_norm": _gradient_axes, "max_abs_logit": _logit_axes, "saturated": _saturation_axes}
"""How the axes of each measure are set up."""


def _versions(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a style for each setting of a table: the colour of its version, and a stroke of its own in that."""
    settings: Sequence[str] = [str(name) for name in dict.fromkeys(table["setting"])]
    broken = [name.startswith("Axon 0.6.1") for name in settings]
    return [
        {"color": BROKEN_COLOUR if bad else SOUND, "linestyle": STROKES[broken[:number].count(bad)]}
        for number, bad in enumerate(broken)
    ]


@styled()
def importance(table: pd.DataFrame, of: str = "success on sound networks") -> Figure:
    """Draw the share of the variance of success that each factor explains, alone and in pairs.

    Args:
        table: of `evidence.importance` or `statistics.decomposition`, with a column n, the runs read.
        of: what varies.
    """
    figure, axes = subplots(height=min(0.17 * len(table) + 1.1, TALLEST))
    figure.legend(handles=variance_bars(axes, table), ncols=3, loc="outside lower center", columnspacing=1)
    figure.suptitle(
        f"variance of {of}\n(n = {table['n'].iloc[0]:,} runs; bars: 95 % intervals)",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    return figure


@styled()
def time_to_solve(survival: pd.DataFrame) -> Figure:
    """Draw the share of runs that have not solved XOR yet, over the steps, with 95 % intervals.

    Args:
        survival: of `evidence.survival`.
    """
    figure, axes = subplots(height=2.9)
    settings = [str(name) for name in dict.fromkeys(survival["setting"])]
    styles = [_of_setting(name) | {"linestyle": STROKES[number]} for number, name in enumerate(settings)]
    survival_curves(axes, survival, {name: sentence_words(name) for name in settings}, styles)
    axes.set_title(f"sound network ({count_words(survival['n'])}; bands: 95 % intervals)")
    axes.set_xlabel("step (vertical bar: end of training)")
    legend_below(figure, axes, 3)
    return figure


def _of_setting(name: str) -> dict[str, Any]:
    """Return the style of a setting such as "SGD 0.1, relu": SGD has the colour of its rate, others have their own."""
    optimizer, rate = name.partition(",")[0].split()
    sgd = optimizer == "SGD"
    return level_styles("lr", [float(rate)])[0] if sgd else level_styles("optimizer", [optimizer.lower()])[0]
