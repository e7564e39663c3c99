"""What all figures share: width, palette, style, and how they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
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


def outcome_bar(axes: Axes, y: float, shares: Mapping[Any, float], left: float = 0.0, width: float = 1.0) -> None:
    """Draw the shares of all outcomes side by side, as one bar from `left` on."""
    for outcome, colour in OUTCOME_COLOURS.items():
        part, hatch = width * shares[outcome], OUTCOME_HATCHES[outcome]
        axes.barh(y, part, 0.8, left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4)
        left += part


def outcome_legend(owner: Figure | Axes, **where: Any) -> None:
    """Say which colour and hatch is which outcome."""
    handles = [
        Patch(
            facecolor=colour, hatch=OUTCOME_HATCHES[name], edgecolor="black", linewidth=0.4, label=OUTCOME_NAMES[name]
        )
        for name, colour in OUTCOME_COLOURS.items()
    ]
    owner.legend(handles=handles, ncols=4, columnspacing=1, handlelength=1.2, **where)


def save(figure: Figure, stem: Path, suffixes: Sequence[str] = (".png", ".pdf")) -> list[Path]:
    """Write a figure with the same bits for the same data, as PNG and PDF unless told, and close it.

    Returns:
        The paths.
    """
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
    paths = [stem.with_suffix(suffix) for suffix in suffixes]
    with plt.rc_context(STYLE):
        for path in paths:
            figure.savefig(path, metadata=metadata[path.suffix])
    plt.close(figure)
    return paths
