"""Style that all figures share: width, colours by meaning, and how figures are created and saved.

Figures are created without pyplot, so importing this package changes no backend and drawing leaves no figure open.
A colour has one meaning in all figures. What colours tell apart, strokes, marks or hatches tell apart too, so that
figures can be read in grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch

from xor_study.files import write_atomically

COLUMN = 3.4
"""Width of a paper's column in inches."""

TALLEST = 4.5
"""The largest height of a figure of the study, in inches."""

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""

PALETTE = (BLUE, ORANGE, GREEN, "#cc79a7", "#000000", "#56b4e9", "#e69f00", GREY)

SOUND, BROKEN_COLOUR, UNGUARDED = BLUE, "#cc79a7", "#000000"
"""Of networks: sound ones, those with Axon 0.6.1's defects, and those whose loss has no guards."""

OUTCOME_COLOURS = {"solved": GREEN, "unsolved": "#f0e442", "diverged": "#e69f00", "nonfinite": ORANGE}
OUTCOME_NAMES = {"solved": "solved", "unsolved": "unsolved", "diverged": "diverged", "nonfinite": "NaN"}
OUTCOME_HATCHES = {"solved": "", "unsolved": "...", "diverged": "///", "nonfinite": "xxx"}

SOLVED, NAN = OUTCOME_COLOURS["solved"], OUTCOME_COLOURS["nonfinite"]

LEVEL_COLOURS = (
    "#332288",
    "#cc6677",
    "#117733",
    "#88ccee",
    "#882255",
    "#999933",
    "#44aa99",
    "#aa4499",
    "#ddcc77",
    "#661100",
)
"""Of the levels of a setting: Paul Tol's muted palette, which has none of the colours above."""

STROKES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*<>"

STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}

BAND: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}

LIMIT: dict[str, Any] = {"color": "black", "linestyle": (0, (1, 1.5)), "linewidth": 0.9}
"""How limits and other values that are computed, not measured, are drawn."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the shared style; a context, or the decorator of a function that draws."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that pyplot does not know.

    Args:
        width: in inches.
        height: likewise.
    """
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)  # becomes its canvas: the layout is computed by the renderer that also saves
    return figure


def subplots(
    rows: int = 1, columns: int = 1, *, height: float, width: float = COLUMN, **options: Any
) -> tuple[Figure, Any]:
    """Return an empty figure and its axes, as `pyplot.subplots` does.

    Args:
        rows: of axes.
        columns: likewise.
        height: in inches.
        width: in inches.
        options: of `Figure.subplots`.
    """
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, **options)


def rate_colour(rate: float) -> str:
    """Return the colour of a learning rate, the same in all figures: from dark at 1e-4 to light at 100."""
    place = (math.log10(rate) + 4) / 6 if rate > 0 else 0.0
    return to_hex(matplotlib.colormaps["viridis"](0.88 * min(max(place, 0.0), 1.0)))


def level_styles(key: str, levels: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the colour, marker and stroke of each level of a setting.

    A name that can be chosen has the same colour in all figures, by its place in its catalogue, and so has a learning
    rate. Other levels have theirs by their place among the levels.

    Args:
        key: of the setting, such as "optimizer".
        levels: of it.

    Raises:
        StudyError: if the key is a catalogue's and a level is not in it.
    """
    if key == "lr":
        return [_style(rate_colour(float(rate)), number) for number, rate in enumerate(levels)]
    names = _names(key)
    numbers = [names.index(level) if level in names else number for number, level in enumerate(levels)]
    return [_style(LEVEL_COLOURS[number % len(LEVEL_COLOURS)], number) for number in numbers]


def _style(colour: str, number: int) -> dict[str, Any]:
    # 10 markers and 5 strokes: the second ten have other strokes with the same markers.
    stroke = STROKES[(number + number // len(MARKERS)) % len(STROKES)]
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)], "linestyle": stroke}


@cache
def _names(key: str) -> list[str]:
    """Return what a setting can be, if that is a name of a catalogue."""
    from xor_study.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS
    from xor_study.training.spec import GROUPS

    catalogues = {**GROUPS, "activation.hidden": HIDDEN_ACTIVATIONS, "activation.output": OUTPUT_ACTIVATIONS}
    return list(catalogues.get(key, ()))


def shades(colour: str) -> Colormap:
    """Return a scale from almost white over a colour to almost black; it is even in grey too."""
    return LinearSegmentedColormap.from_list(f"to {colour}", [(0.0, "#f7f7f7"), (0.6, colour), (1.0, _darker(colour))])


def _darker(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"#{red // 3:02x}{green // 3:02x}{blue // 3:02x}"


PREDICTIONS = LinearSegmentedColormap.from_list("predictions", ["#f7fbff", "#6baed6", "#08306b"])
"""Of predictions: 0 is light and 1 dark, in grey too."""


def band(axes: Axes, x: Any, middle: Any, ends: tuple[Any, Any], *, step: Any = None, **line: Any) -> None:
    """Draw a line with its interval as a band of the same colour.

    Args:
        axes: to draw into.
        x: shape (points,).
        middle: of the line, shape (points,).
        ends: of the interval, two of shape (points,).
        step: of `fill_between`, such as "post"; None: straight lines between the points.
        line: style of the line and its label.
    """
    axes.plot(x, middle, drawstyle=f"steps-{step}" if step else "default", **line)
    axes.fill_between(x, *ends, step=step, color=line["color"], **BAND)


def error_bars(low: Any, middle: Any, high: Any) -> Any:
    """Return an interval as `Axes.errorbar` takes it: distances from the middle, shape (2, points).

    Args:
        low: shape (points,).
        middle: likewise.
        high: likewise.
    """
    # Rounding may leave a middle a hair outside of its interval.
    return np.maximum([np.asarray(middle) - low, np.asarray(high) - middle], 0)


def outcome_bar(axes: Axes, y: float, shares: Mapping[Any, float], left: float = 0.0, width: float = 1.0) -> None:
    """Draw the shares of all outcomes side by side, as one bar.

    Args:
        axes: to draw into.
        y: the middle of the bar.
        shares: by outcome.
        left: the left end of the bar.
        width: of a share of 1.
    """
    for outcome, colour in OUTCOME_COLOURS.items():
        part, hatch = width * shares[outcome], OUTCOME_HATCHES[outcome]
        axes.barh(y, part, 0.8, left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
        left += part


def outcome_legend(owner: FigureBase | Axes, **where: Any) -> None:
    """Add a legend of the outcomes' colours and hatches to a figure or to axes."""
    edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}
    handles = [
        Patch(facecolor=colour, hatch=OUTCOME_HATCHES[name], label=OUTCOME_NAMES[name], **edge)
        for name, colour in OUTCOME_COLOURS.items()
    ]
    owner.legend(handles=handles, ncols=4, columnspacing=1, handlelength=1.2, **where)


def legend_below(figure: FigureBase, source: Axes, columns: int, **options: Any) -> None:
    """Add the legend of some axes below all of a figure, or of a part of it."""
    handles = source.get_legend_handles_labels()
    options = {"columnspacing": 1.0, "handlelength": 2.2, **options}
    figure.legend(*handles, ncols=columns, loc="outside lower center", **options)


def legend_beside(axes: Axes, **options: Any) -> None:
    """Add a legend at the right of axes, where it hides nothing."""
    options = {"handlelength": 1.6, "borderaxespad": 0.2, "labelspacing": 0.25, "fontsize": 6.5, **options}
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), **options)


@cache
def author() -> str:
    """Return who the metadata of the package names as its author."""
    try:
        about = metadata("xor-study")
    except PackageNotFoundError:  # a copy of the sources that is not installed
        return "The xor_study authors"
    return about["Author"] or "The xor_study authors"


@styled()
def save(
    figure: Figure,
    stem: Path,
    suffixes: Sequence[str] = (".png", ".pdf"),
    *,
    lay_out_once: bool = False,
    title: str = "",
    caption: str = "",
) -> list[Path]:
    """Write a figure, with the same bits for the same data.

    Args:
        figure: of any function of this package.
        stem: the path without a suffix.
        suffixes: which files to write.
        lay_out_once: compute the layout for the first file only, which saves a third of the time. The others' texts are
            then a fraction of a pixel off, since each format has its own widths of letters.
        title: for the files' metadata; the file's name if it is empty.
        caption: is written beside them as a text file, unless it is empty.

    Returns:
        The paths.
    """
    about: dict[str, Any] = {"Title": title or stem.name.replace("_", " "), "Author": author()}
    # Dates and versions would change the bits.
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    paths = [stem.with_suffix(suffix) for suffix in suffixes]
    for path in paths:
        figure.savefig(path, metadata=about | metadata[path.suffix])
        if lay_out_once:
            figure.set_layout_engine("none")
    if caption:
        text = f"{caption}\n".encode()
        paths.append(write_atomically(stem.with_suffix(".txt"), lambda stream: stream.write(text)))
    return paths
