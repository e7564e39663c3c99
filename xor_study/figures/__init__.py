"""Figures, one function each: they take tables and arrays, return a matplotlib figure, and know no torch.

They are imported when they are first asked for, so that the names in `FIGURES` are known without matplotlib. In a
notebook, `%matplotlib inline` makes a cell show the figure that it returns.

Example:
    >>> from xor_study import figures
    >>> figures.FIGURES["loss_curves"]
    ('cells', 'curves')
    >>> figures.loss_curves.__module__
    'xor_study.figures.study'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xor_study.figures.alarms import monitors
    from xor_study.figures.defects import anatomy, mechanism
    from xor_study.figures.postmortem import last_steps
    from xor_study.figures.single import decision_boundary, loss_curve, outcomes
    from xor_study.figures.study import (
        boundaries,
        gradients,
        heatmaps,
        importance,
        learning_rate,
        loss_curves,
        precision,
        symptom,
        time_to_solve,
    )
    from xor_study.figures.style import save
    from xor_study.figures.sweep import heat_map, loss_by_level, rate_curves, solved_by_level
    from xor_study.figures.theory import why_half, width_two
    from xor_study.figures.verdicts import remedies, suspects
    from xor_study.figures.words import run_title

FIGURES: dict[str, tuple[str, ...]] = {
    "symptom": ("symptom",),
    "mechanism": ("cells", "curves", "axon_losses"),
    "anatomy": ("anatomy",),
    "suspects": ("suspects",),
    "remedies": ("remedies",),
    "learning_rate": ("cells",),
    "heatmaps": ("cells",),
    "loss_curves": ("cells", "curves"),
    "precision": ("naive_onsets",),
    "boundaries": ("panels",),
    "gradients": ("courses",),
    "monitors": ("roc", "monitors"),
    "importance": ("importance",),
    "time_to_solve": ("survival",),
    "why_half": ("theory",),
    "width_two": ("cells",),
}
"""The study's figures by name, with the tables that each takes."""

_MODULES = {
    "anatomy": "defects",
    "mechanism": "defects",
    "last_steps": "postmortem",
    "decision_boundary": "single",
    "loss_curve": "single",
    "monitors": "alarms",
    "outcomes": "single",
    "save": "style",
    "heat_map": "sweep",
    "loss_by_level": "sweep",
    "rate_curves": "sweep",
    "solved_by_level": "sweep",
    "remedies": "verdicts",
    "run_title": "words",
    "suspects": "verdicts",
    "why_half": "theory",
    "width_two": "theory",
}
"""Where the others than the study's are, or one of another name."""

__all__ = [
    "FIGURES",
    "anatomy",
    "boundaries",
    "decision_boundary",
    "gradients",
    "heat_map",
    "heatmaps",
    "importance",
    "last_steps",
    "learning_rate",
    "loss_by_level",
    "loss_curve",
    "loss_curves",
    "mechanism",
    "monitors",
    "outcomes",
    "precision",
    "rate_curves",
    "remedies",
    "run_title",
    "save",
    "solved_by_level",
    "suspects",
    "symptom",
    "time_to_solve",
    "why_half",
    "width_two",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'study')}"), name)
