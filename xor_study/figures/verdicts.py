"""Figures of the study's verdicts: the remedies by one yardstick, and the suspects by sufficiency and necessity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xor_study.figures.style import (
    GREY,
    NAN,
    SOLVED,
    TALLEST,
    error_bars,
    legend_below,
    styled,
    subplots,
)
from xor_study.figures.words import sentence_words

ROW = 0.125
"""Height of a row, in inches."""

WORDS = ("cures", "masks", "reduces", "no effect", "worsens", "undecided")
"""What a remedy does to the failing configuration, in the order of the groups of rows."""

SOUND_MARKS: dict[str, dict[str, Any]] = {
    "helps": {"marker": "o", "color": "black"},
    "no effect": {"marker": "o", "color": GREY, "fillstyle": "none"},
    "undecided": {"marker": "D", "color": GREY, "fillstyle": "none"},
    "harms": {"marker": "X", "color": "black"},
}
"""Mark of a remedy on the sound network, by the word."""


@styled()
def remedies(table: pd.DataFrame) -> Figure:
    """Draw what each remedy does to the failing and to the sound network, a row each, grouped by its word.

    Args:
        table: a row for each remedy: columns remedy and word, sound_word, and with _low and _high (95 % intervals) nan
            and solved (shares on the failing network), sound_solved, and sound_steps (steps later, of pairs).
    """
    order = {word: number for number, word in enumerate(WORDS)}
    reported = table["remedy"] == "as reported"
    table = table.assign(rank=table["word"].map(order).fillna(len(order)).where(~reported, -1))
    rows = table.sort_values("rank", kind="stable").reset_index(drop=True)
    y, groups = _rows(rows)
    height = min(ROW * (y[-1] + 1) + 1.25, TALLEST)
    size = min(6.0, 56 * (height - 1.25) / (y[-1] + 1))  # points: of 72 an inch, three quarters for the letters
    figure, axes = subplots(1, 4, height=height, sharey=True, width_ratios=(1, 1, 1, 1.2))
    panels = (("nan", NAN, "X"), ("solved", SOLVED, "o"), ("sound_solved", SOLVED, "o"))
    for ax, (column, colour, marker) in zip(axes, panels, strict=False):
        _dots(ax, y, rows, column, {"color": colour, "marker": marker})
        ax.set(xlim=(-0.08, 1.08), xticks=[0, 1])
        ax.set_xlabel("share", fontsize=7)
    for word, style in SOUND_MARKS.items():
        chosen = (rows["sound_word"] == word).to_numpy()
        _dots(axes[3], y[chosen], rows[chosen], "sound_steps", style, label=word)
    axes[3].axvline(0, color="black", linewidth=0.5)
    axes[3].set_xscale("symlog", linthresh=100)
    axes[3].set_xticks([-1e4, -100, 0, 100, 1e4], ["-10⁴", "", "0", "", "10⁴"])
    axes[3].set_xlabel("later", fontsize=7)
    titles = ("NaN,\nfailing", "solved,\nfailing", "solved,\nsound", "steps,\nsound")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=7)
        ax.grid(axis="y", color="#dddddd", linewidth=0.4)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=6)
    axes[0].set_yticks([*y, *groups.values()], [*map(sentence_words, rows["remedy"]), *groups], fontsize=size)
    for label in axes[0].get_yticklabels()[len(y) :]:
        label.set_fontweight("bold")
    axes[0].set_ylim(y[-1] + 0.7, min([*y, *groups.values()]) - 0.7)
    title = "on the sound network (lines: 95 % intervals)"
    legend_below(figure, axes[3], 4, title=title, handlelength=1)
    return figure


def _rows(rows: pd.DataFrame) -> tuple[Any, dict[str, float]]:
    """Return where each row is drawn, shape (rows,), and where the heading of each group is."""
    y, groups, at = [], {}, 0.0
    for previous, row in zip([None, *rows["rank"]], rows.to_dict("records"), strict=False):
        if row["rank"] >= 0 and row["rank"] != previous:
            groups[str(row["word"])] = at
            at += 1
        y.append(at)
        at += 1
    return np.array(y), groups


def _dots(axes: Axes, y: Any, rows: pd.DataFrame, column: str, style: dict[str, Any], label: str = "") -> None:
    """Draw a column with its interval as a dot in each row that has it."""
    known = rows[column].notna().to_numpy()  # of what is unknown the interval is infinite, which no layout can hold
    y, rows = y[known], rows[known]
    if not len(rows):  # nothing would have an extent at the corner of the figure
        return
    middle = rows[column].to_numpy(float)
    spread = error_bars(rows[f"{column}_low"], middle, rows[f"{column}_high"])
    options: dict[str, Any] = {"markersize": 3, "linewidth": 0.8, "linestyle": "", "elinewidth": 0.8, **style}
    axes.errorbar(middle, y, xerr=spread, label=label or None, clip_on=False, **options)


@styled()
def suspects(table: pd.DataFrame) -> Figure:
    """Draw the probabilities of sufficiency and of necessity of each suspect.

    Each level has a row with its name below that of its suspect; if there are too many rows for that, each suspect has
    one row, in which its levels lie below each other without names.

    Args:
        table: a row for each level of each suspect: columns suspect and level, and ps, pn and cure with _low and _high
            (95 % intervals).
    """
    rows = table.assign(order=pd.factorize(table["suspect"])[0]).sort_values("order", kind="stable")
    named = 0.9 * ROW * (len(rows) + 1.3 * rows["order"].nunique()) + 1.1 <= TALLEST
    y, labels, end = _named_levels(rows) if named else _unnamed_levels(rows)
    figure, axes = subplots(1, 3, height=min(ROW * end + 1.1, TALLEST), sharey=True)
    panels = (
        ("ps", "sufficient:\nmakes a sound\nnetwork NaN", {"color": NAN, "marker": "s"}),
        ("pn", "necessary:\nwithout it\nno NaN", {"color": NAN, "marker": "X"}),
        ("cure", "cured:\nwithout it\nsolved", {"color": SOLVED, "marker": "o"}),
    )
    for ax, (column, title, style) in zip(axes, panels, strict=True):
        _dots(ax, np.array(y), rows, column, {"markersize": 3 if named else 2, **style})
        ax.set_title(title, fontsize=7)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_xlim(min(-0.08, rows[f"{column}_low"].min() - 0.05), 1.08)
        ax.axvline(0, color="black", linewidth=0.5)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=6)
        if named:
            ax.grid(axis="y", color="#dddddd", linewidth=0.4)
    axes[0].set_yticks([height for height, _, _ in labels], [text for _, text, _ in labels], fontsize=6)
    for label, (_, _, heading) in zip(axes[0].get_yticklabels(), labels, strict=True):
        label.set_fontweight("bold" if heading and named else "normal")
    axes[0].set_ylim(end - 0.5, -0.7)
    figure.supxlabel(f"probability and its 95 % interval{'' if named else ' (in brackets: changes)'}", fontsize=8)
    return figure


Labels = list[tuple[float, str, bool]]
"""Where texts are, and whether they are headings."""


def _named_levels(rows: pd.DataFrame) -> tuple[list[float], Labels, float]:
    """Return where each row is drawn, the labels of levels and suspects, and where the last row ends."""
    y: list[float] = []
    labels: Labels = []
    at = 0.0
    for suspect, levels in rows.groupby("suspect", sort=False):
        labels.append((at, sentence_words(str(suspect)), True))
        for level in levels["level"]:
            at += 1
            y.append(at)
            labels.append((at, sentence_words(str(level)), False))
        at += 1.3
    return y, labels, at


def _unnamed_levels(rows: pd.DataFrame) -> tuple[list[float], Labels, float]:
    """Return the same for levels without names: close to each other, with their suspect's name beside them."""
    y: list[float] = []
    labels: Labels = []
    at, most = 0.0, (TALLEST - 1.1) / ROW
    step = most / (len(rows) + 2 * rows["order"].nunique())
    for suspect, levels in rows.groupby("suspect", sort=False):
        y += [at + step * number for number in range(len(levels))]
        between = "\n" if len(levels) > 4 else " "
        name = f"{sentence_words(str(suspect))}{between}({len(levels)})"
        labels.append((at + step * (len(levels) - 1) / 2, name, True))
        at += step * (len(levels) + 2)
    return y, labels, at
