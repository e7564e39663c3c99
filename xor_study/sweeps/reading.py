"""Reading the outcomes of sweeps back: of one folder or of many, of those that are finished and those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xor_study.analysis.outcomes import Outcomes
from xor_study.sweeps.commands import runs_of


def outcomes_of(folders: Sequence[Path]) -> Outcomes:
    """Return the outcomes of all runs in some folders; a run that is in several of them counts once.

    Raises:
        StudyError: if a folder holds no runs.
    """
    return Outcomes.of(map(runs_of, folders))
