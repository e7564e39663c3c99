"""How long runs take to solve XOR: the share that has not yet, with those that never do as censored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def not_solved_yet(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the share of some runs that have not solved XOR yet after each step.

    It is Kaplan and Meier's estimate with Kalbfleisch and Prentice's 95 % interval (log-log); runs that end unsolved
    are censored there.

    Args:
        runs: rows as in `runs.csv`, at least one.

    Returns:
        Columns n, step, unsolved, low and high; at most 202 rows, the first at step 1 and the last at the end.
    """
    from statsmodels.duration.survfunc import SurvfuncRight  # a second to import, for this table only

    steps = (runs["epochs"] * runs["iterations"]).to_numpy()
    solved = runs["solved_step"].notna().to_numpy()
    times = np.where(solved, runs["solved_step"].fillna(0), steps).astype(float)
    estimate = SurvfuncRight(times, solved.astype(int))
    low, high = _log_log(estimate.surv_prob, estimate.surv_prob_se)
    columns = {"step": estimate.surv_times, "unsolved": estimate.surv_prob, "low": low, "high": high}
    table = _thinned(pd.DataFrame(columns, dtype=float))
    start = pd.DataFrame({"step": [1.0], "unsolved": 1.0, "low": 1.0, "high": 1.0})
    last = (table if len(table) else start).tail(1)  # no run solves it: the estimate has no step
    table = pd.concat([start, table, last.assign(step=float(steps.max()))]).drop_duplicates("step")
    table.insert(0, "n", len(runs))
    return table


def _log_log(share: NDArray[np.float64], error: NDArray[np.float64]) -> tuple[Any, Any]:
    """Return the ends of Kalbfleisch and Prentice's 95 % interval of a survival function.

    Args:
        share: survival at each time, shape (times,).
        error: its standard error, shape (times,).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = 1.959964 * error / (share * np.abs(np.log(share)))
        low, high = share ** np.exp(spread), share ** np.exp(-spread)
    return np.where(np.isfinite(low), low, share), np.where(np.isfinite(high), high, share)


def _thinned(table: pd.DataFrame, points: int = 200) -> pd.DataFrame:
    """Return some rows of a table, evenly spaced, with the first and the last."""
    if len(table) <= points:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, points).round().astype(int))]
