"""Seeds that are added to cells until their intervals are narrow: a sweep in rounds.

A round is an ordinary sweep of all runs that are wanted so far. What the next one adds follows from the outcomes of
this one alone, so it is the same after an interruption, in every process and with any launcher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.power import wilson_trials, wilson_widths
from xor_study.errors import StudyError
from xor_study.sweeps.axes import Until
from xor_study.sweeps.overrides import MOST_RUNS
from xor_study.sweeps.plan import Plan
from xor_study.sweeps.sweep import Sweep
from xor_study.training.outcome import OUTCOMES
from xor_study.training.table import run_ids

GROWTH = 0.25
"""By how much a cell that is not narrow yet grows at least, so that there are few rounds."""


def rounds(planned: Plan, folder: Path, shards: int | None) -> Iterator[Sweep]:
    """Yield the sweep of each round, which is to be trained before the next one is asked for; mostly there is only one.

    Args:
        planned: the plan.
        folder: of the sweep.
        shards: see `Sweep`.

    Raises:
        StudyError: if a round would have more than MOST_RUNS runs.
    """
    settings = planned.engine, planned.device, planned.threads, folder, shards
    rule = planned.until
    if rule is None:
        yield Sweep(planned.table, *settings)
        return
    cells = planned.table[planned.table["seed"] == 0]
    identity = hashlib.sha256("".join([*run_ids(cells), json.dumps(described(rule))]).encode()).hexdigest()[:20]
    counts = np.full(len(cells), rule.least)
    while True:
        sweep = Sweep(_with_seeds(cells, counts), *settings, plan_identity=identity)
        yield sweep
        following = _following(counts, _successes(sweep, counts), rule)
        if (following == counts).all():
            return
        if following.sum() > MOST_RUNS:
            raise StudyError(
                f"seed=until(...): the next round has {following.sum()} runs, must be at most {MOST_RUNS}; "
                "give a larger width or a smaller max"
            )
        counts = following


def described(rule: Until) -> dict[str, Any]:
    """Return a rule as it is kept in `plan.json`."""
    return {"width": rule.width, "min": rule.least, "max": rule.most, "outcome": rule.outcome}


def summary(sweep: Sweep, rule: Until) -> str:
    """Return how many cells of a finished sweep reached the width."""
    cell = np.cumsum(sweep.table["seed"] == 0) - 1
    counts = np.bincount(cell)
    widths = _widths(counts, _successes(sweep, counts), rule)
    narrow = int((widths <= rule.width).sum())
    line = f"{narrow} of {len(counts)} cells reached width {rule.width:g} with {_span(counts[widths <= rule.width])}"
    if narrow < len(counts):
        line += f"; {len(counts) - narrow} stopped at max={rule.most}, the widest at {widths.max():.3g}"
    return line


def _span(counts: NDArray[np.int64]) -> str:
    if not len(counts):
        return "no seeds"
    low, high = int(counts.min()), int(counts.max())
    return f"{low} seeds" if low == high else f"{low} to {high} seeds"


def _with_seeds(cells: pd.DataFrame, counts: NDArray[np.int64]) -> pd.DataFrame:
    """Return the runs of some cells with the first seeds of each."""
    table = cells.take(np.repeat(np.arange(len(cells)), counts)).reset_index(drop=True)
    firsts = np.cumsum(counts) - counts
    table["seed"] = np.arange(len(table)) - np.repeat(firsts, counts)
    return table


def _successes(sweep: Sweep, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many runs of each cell had each outcome, shape (cells, outcomes)."""
    number = np.repeat(np.arange(len(counts)), counts) * len(OUTCOMES) + sweep.parts.outcome_codes()
    return np.bincount(number, minlength=len(counts) * len(OUTCOMES)).reshape(-1, len(OUTCOMES))


def _columns(rule: Until) -> list[int]:
    return [at for at, name in enumerate(OUTCOMES) if rule.outcome in (None, name)]


def _widths(counts: NDArray[np.int64], successes: NDArray[np.int64], rule: Until) -> NDArray[np.float64]:
    """Return the width of the widest interval that counts in each cell."""
    widths: NDArray[np.float64] = wilson_widths(successes[:, _columns(rule)], counts[:, None]).max(axis=1)
    return widths


def _following(counts: NDArray[np.int64], successes: NDArray[np.int64], rule: Until) -> NDArray[np.int64]:
    """Return how many seeds each cell has in the next round."""
    shares = successes[:, _columns(rule)] / counts[:, None]
    needed = np.maximum(wilson_trials(shares, rule.width).max(axis=1), np.ceil(counts * (1 + GROWTH)).astype(np.int64))
    # A share of few seeds is uncertain, so a cell doubles at most.
    more = np.minimum(np.minimum(needed, 2 * counts), rule.most)
    return np.where(_widths(counts, successes, rule) > rule.width, np.maximum(more, counts), counts)
