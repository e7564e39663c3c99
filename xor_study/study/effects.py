"""Effects between two cells of a study, paired by seed, each computed once."""

from __future__ import annotations

import numpy as np

from xor_study.analysis.cells import Study
from xor_study.analysis.statistics import Effect, paired_difference, paired_shift


def difference(study: Study, first: int, second: int, outcome: str) -> Effect:
    """Return by how much more often the second cell has an outcome than the first."""

    def compute() -> Effect:
        one, other = study.pairs(first, second)
        return paired_difference(one["outcome"] == outcome, other["outcome"] == outcome)

    return study.once(("difference", outcome, first, second), compute)


def steps_between(study: Study, first: int, second: int) -> tuple[Effect, int]:
    """Return by how many steps the second cell solves later, over the seeds that both solve, and how many these are."""

    def compute() -> tuple[Effect, int]:
        one, other = (runs["solved_step"].to_numpy(float, na_value=np.nan) for runs in study.pairs(first, second))
        both = np.isfinite(one) & np.isfinite(other)
        return paired_shift(one[both], other[both]), int(both.sum())

    return study.once(("steps", first, second), compute)
