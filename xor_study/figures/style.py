"""What all figures share: width, palette, style, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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
