"""Style that all figures share: width, palette, and how they are created and saved.

Figures are created without pyplot, so importing this package changes no backend and drawing leaves no figure open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLUMN = 3.4
"""Width of a paper's column in inches."""

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
"""Of Okabe and Ito's palette, which colour-blind readers can tell apart."""

PALETTE = (BLUE, ORANGE, GREEN, "#cc79a7", "#000000", "#56b4e9", "#e69f00", GREY)

STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
}

OUTCOME_COLOURS = {"solved": "#009e73", "unsolved": "#f0e442", "diverged": "#e69f00", "nonfinite": "#d55e00"}
OUTCOME_NAMES = {"solved": "solved", "unsolved": "unsolved", "diverged": "diverged", "nonfinite": "NaN"}
OUTCOME_HATCHES = {"solved": "", "unsolved": "...", "diverged": "///", "nonfinite": "xxx"}


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


def outcome_legend(owner: Figure | Axes, **where: Any) -> None:
    """Add a legend of the outcomes' colours and hatches to a figure or to axes."""
    edge: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.4}
    handles = [
        Patch(facecolor=colour, hatch=OUTCOME_HATCHES[name], label=OUTCOME_NAMES[name], **edge)
        for name, colour in OUTCOME_COLOURS.items()
    ]
    owner.legend(handles=handles, ncols=4, columnspacing=1, handlelength=1.2, **where)


@styled()
def save(
    figure: Figure, stem: Path, suffixes: Sequence[str] = (".png", ".pdf"), *, lay_out_once: bool = False
) -> list[Path]:
    """Write a figure, with the same bits for the same data.

    Args:
        figure: of any function of this package.
        stem: the path without a suffix.
        suffixes: which files to write.
        lay_out_once: compute the layout for the first file only, which saves a third of the time. The others' texts are
            then a fraction of a pixel off, since each format has its own widths of letters.

    Returns:
        The paths.
    """
    # Dates and versions would change the bits.
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    paths = [stem.with_suffix(suffix) for suffix in suffixes]
    for path in paths:
        figure.savefig(path, metadata=metadata[path.suffix])
        if lay_out_once:
            figure.set_layout_engine("none")
    return paths
