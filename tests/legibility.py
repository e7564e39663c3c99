"""What is wrong with a figure for a reader: texts that overlap, leave the canvas, cover data, or are internal names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

SLACK = 1.0
"""Pixels that may overlap: extents have the room of the line above and below the letters."""


def texts(figure: Figure) -> list[Text]:
    """Return the texts that are drawn: not those of invisible axes, and not of ticks outside of the limits."""
    hidden: set[Text] = set()
    for axes in figure.findobj(Axes):
        if not axes.get_visible():
            hidden |= set(axes.findobj(Text))
        for axis in (axes.xaxis, axes.yaxis):
            shown = set(axis._update_ticks())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            hidden |= {label for tick in ticks if tick not in shown for label in (tick.label1, tick.label2)}
            hidden |= {label for tick in ticks for label in (tick.label1, tick.label2) if not tick.get_visible()}
    return [
        text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible() and text not in hidden
    ]


def problems(figure: Figure) -> list[str]:
    """Return what a reader of the figure would stumble over, a line each."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    shown = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    return [*_outside(figure, shown), *_overlaps(shown), *_over_data(figure), *_internal(shown), *_legends(figure)]


def _outside(figure: Figure, shown: list[tuple[str, Any]]) -> Iterator[str]:
    width, height = figure.canvas.get_width_height()
    for text, box in shown:
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            yield f"outside: {text!r}"


def _overlaps(shown: list[tuple[str, Any]]) -> Iterator[str]:
    for (one, a), (other, b) in itertools.combinations(shown, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > SLACK and high > SLACK:
            yield f"overlap: {one!r} and {other!r}"


def _over_data(figure: Figure) -> Iterator[str]:
    """Yield texts and legends inside axes that cover a line or mark of theirs."""
    renderer = figure.canvas.get_renderer()
    for axes in figure.findobj(Axes):
        inside = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts if text.get_text()]
        legend = axes.get_legend()
        inside += [("legend", legend.get_window_extent(renderer))] if legend is not None else []
        for line in axes.lines:
            points = _points(axes, line)
            for text, box in inside:
                covered = (points > (box.x0 + SLACK, box.y0 + SLACK)) & (points < (box.x1 - SLACK, box.y1 - SLACK))
                if covered.all(axis=1).any():
                    yield f"covers data: {text!r} over {line.get_label()!r}"


def _points(axes: Axes, line: Any) -> np.ndarray:
    """Return points along a line in pixels, shape (points, 2)."""
    data = np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
    if len(data) == 0 or line.get_transform() != axes.transData:
        return np.zeros((0, 2))
    points = axes.transData.transform(data)
    if line.get_linestyle() == "None" or len(points) == 1:
        return points
    return np.concatenate([a + (b - a) * np.linspace(0, 1, 40)[:, None] for a, b in itertools.pairwise(points)])


def _internal(shown: list[tuple[str, Any]]) -> Iterator[str]:
    """Yield texts with names of the code, and mathematics that is not set as such."""
    for text, _ in shown:
        words = re.sub(r"\$[^$]*\$", "", text)
        if re.search(r"\w_\w|\^|\de[-+]?\d", words):
            yield f"internal name: {text!r}"


def _legends(figure: Figure) -> Iterator[str]:
    for legend in figure.findobj(Legend):
        labels = [text.get_text() for text in legend.get_texts()]
        if len(labels) != len(legend.legend_handles) or None in legend.legend_handles:
            yield f"legend entries without a handle: {labels}"
        if len(set(labels)) != len(labels):
            yield f"legend entries twice: {labels}"


def indistinct(figure: Figure) -> list[str]:
    """Return pairs of labelled lines that only their hue tells apart: no stroke, no marker, and no lightness."""
    pairs = []
    for axes in figure.findobj(Axes):
        lines = [line for line in axes.lines if not line.get_label().startswith("_") and len(line.get_xdata())]
        for one, other in itertools.combinations(lines, 2):
            strokes = one._unscaled_dash_pattern != other._unscaled_dash_pattern
            marks = (one.get_marker(), one.get_fillstyle()) != (other.get_marker(), other.get_fillstyle())
            light = abs(lightness(one.get_color()) - lightness(other.get_color())) > 0.15
            if not (strokes or marks or light or one.get_linestyle() != other.get_linestyle()):
                pairs.append(f"{one.get_label()} and {other.get_label()}")
    return pairs


def lightness(colour: Any) -> float:
    """Return how light a colour is in grey, from 0 to 1."""
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def line_colours(figure: Figure) -> dict[str, str]:
    """Return the colours of a figure's lines by their labels."""
    lines = [line for axes in figure.findobj(Axes) for line in axes.lines]
    return {line.get_label(): line.get_color() for line in lines if not line.get_label().startswith("_")}
