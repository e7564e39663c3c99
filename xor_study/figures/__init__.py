"""Figures, one function each: they take tables and arrays, return a matplotlib figure, and know no torch."""

from collections.abc import Callable

from matplotlib.figure import Figure

from xor_study.figures.mechanism import mechanism
from xor_study.figures.postmortem import last_steps
from xor_study.figures.single import decision_boundary, loss_curve, outcomes
from xor_study.figures.study import (
    boundaries,
    fixes,
    gradients,
    heatmaps,
    importance,
    learning_rate,
    loss_curves,
    monitors,
    precision,
    symptom,
    time_to_solve,
)
from xor_study.figures.style import save

FIGURES: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "symptom": (symptom, ("symptom",)),
    "mechanism": (mechanism, ("mechanism_curves", "mechanism_cells", "anatomy", "axon_losses")),
    "learning_rate": (learning_rate, ("cells",)),
    "heatmaps": (heatmaps, ("cells",)),
    "loss_curves": (loss_curves, ("cells", "curves")),
    "precision": (precision, ("naive_onsets",)),
    "boundaries": (boundaries, ("panels",)),
    "gradients": (gradients, ("courses",)),
    "monitors": (monitors, ("roc", "monitors")),
    "fixes": (fixes, ("claims",)),
    "importance": (importance, ("importance",)),
    "time_to_solve": (time_to_solve, ("survival",)),
}
"""The study's figures by name, with the tables that each takes."""

__all__ = [
    "FIGURES",
    "boundaries",
    "decision_boundary",
    "fixes",
    "gradients",
    "heatmaps",
    "importance",
    "last_steps",
    "learning_rate",
    "loss_curve",
    "loss_curves",
    "mechanism",
    "monitors",
    "outcomes",
    "precision",
    "save",
    "symptom",
    "time_to_solve",
]
