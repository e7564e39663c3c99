"""Which number warns of a failure while training still looks sound, and how early: the article's last advice, measured.

A monitor is a number that is computed at every step. It raises an alarm at the first step at which it exceeds a
threshold. Of runs that go to NaN the steps before that count, of runs that end solved all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis import axon
from xor_study.analysis.cells import QUARTILES, Study
from xor_study.analysis.statistics import wilson
from xor_study.engines.training import train_function
from xor_study.model.data import CORNERS
from xor_study.training.cohorts import cohort_rows, cohorts
from xor_study.training.outcome import Detail
from xor_study.training.spec import HALF, KEYS
from xor_study.training.table import table_of

WINDOW = 32
"""Steps that a mean is taken over."""

MONITORS: dict[str, Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.float64]]] = {
    "gradient norm": lambda history: history["grad_norm"],
    "largest logit": lambda history: history["max_abs_logit"],
    "loss above its start": lambda history: _recent(history["loss"]) / history["loss"][:, :1],
    "saturation": lambda history: _recent(history["saturated"]) / len(CORNERS),
}
"""Monitors by name: functions from the history of some runs to values, both of shape (runs, steps).

The gradient's norm before clipping; the largest absolute logit of the four corners; the mean loss of the last `WINDOW`
steps over the first loss; the share of corners that were saturated in these steps.
"""

MOST_FALSE = 0.01
"""The share of false alarms that a threshold is chosen for."""

THRESHOLDS = 10 ** (np.arange(-60, 181) / 20)
"""Thresholds that are tried: 20 a decade from 1e-3 to 1e9."""


def studies(study: Study) -> dict[str, pd.DataFrame]:
    """Return the cells of the studies that monitors are tried on, by name."""
    mechanism = [study.where(*axon.SWITCHES, loss=axon.LOSS, **setting) for setting in axon.SETTINGS.values()]
    sigmoid = study.where("lr", "loss", *axon.SWITCHES)
    others = study.where("lr", "loss", activation__output=["identity", "tanh"])
    return {
        "mechanism": pd.concat(mechanism),
        "loss": pd.concat([sigmoid, others]),
        "precision": study.where("lr", "loss", "dtype", "optimizer", batch="full", epochs=1, iterations=500),
    }


SEEDS = {"mechanism": 100, "loss": 10, "precision": 10}
"""How many seeds of each cell are trained again."""


def alarms(
    study: Study, seeds: Mapping[str, int] = SEEDS, each: Callable[..., Iterable[pd.DataFrame]] = map
) -> pd.DataFrame:
    """Return each monitor's maximum per run and the first step at which it crossed each threshold.

    Reads the runs of the first seeds of each cell of `studies` that go to NaN after the first step or end solved, and
    trains them again with every step's history.

    Args:
        study: whose runs are trained again.
        seeds: how many of each cell, by study.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        Columns study, seed, failing, onset (0 in sound runs), monitor, highest (before the onset), and rose: the steps
        at which the monitor first exceeded each of `THRESHOLDS`, shape (thresholds,), 0 for never.
    """
    chosen = []
    for name, cells in studies(study).items():
        runs = study.pooled(cells)
        failing = (runs["first_nonfinite_step"] > 1).fillna(False)
        runs = runs[(runs["seed"] < seeds[name]) & (failing | (runs["outcome"] == "solved"))]
        chosen.append(runs.assign(study=name))
    watched = pd.concat(chosen)
    table = table_of(watched[list(KEYS)])
    onsets = watched["first_nonfinite_step"].fillna(0).to_numpy(np.int64)
    # No machine code is made for half precisions, so these cohorts take longest and start first.
    members = sorted(cohort_rows(table), key=lambda rows: table["dtype"].iloc[rows[0]] not in HALF)
    parts = each(_watched, (table.iloc[rows] for rows in members), (onsets[rows] for rows in members))
    tables = [part.assign(row=rows[part["row"]]) for part, rows in zip(parts, members, strict=True)]
    result = pd.concat(tables).sort_values("row", kind="stable")
    labels = {name: watched[name].to_numpy()[result["row"]] for name in ("study", "seed")}
    return result.assign(**labels).drop(columns="row").reset_index(drop=True)


def _watched(table: pd.DataFrame, onsets: NDArray[np.int64]) -> pd.DataFrame:
    """Train runs that share a program and return the rows of `alarms`, with `row`, the number of a run's row.

    Args:
        table: a checked table of runs.
        onsets: of the runs, 0 for never, shape (runs,).
    """
    (cohort,) = cohorts(table.reset_index(drop=True))
    train = train_function("vmap" if table["dtype"].iloc[0] in HALF else "lanes")
    tables = []
    for part in train([cohort], Detail(every_step=True), lambda steps: None):
        rows = np.arange(len(table))[part.members]
        assert part.history is not None
        history = {name: np.ascontiguousarray(values.T) for name, values in part.history.items()}
        for name, monitor in MONITORS.items():
            risen = _risen(monitor(history), onsets[rows])
            tables.append(risen.assign(row=rows, monitor=name))
    return pd.concat(tables)


def _recent(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the last `WINDOW` steps, or of as many as there are, at each step; shape (runs, steps)."""
    sums = np.cumsum(values, axis=1)
    sums[:, WINDOW:] -= sums[:, :-WINDOW]  # NumPy works as if the two did not overlap
    return sums / np.minimum(np.arange(1, values.shape[1] + 1), WINDOW)


def _risen(values: NDArray[np.float64], onsets: NDArray[np.int64]) -> pd.DataFrame:
    """Return the maximum of some runs' values before their onsets, and when they first exceeded each threshold.

    Args:
        values: of a monitor, shape (runs, steps).
        onsets: 0 for never, shape (runs,).
    """
    steps = values.shape[1]
    before = (np.arange(1, steps + 1) < onsets[:, None]) | (onsets[:, None] == 0)
    # The largest so far never falls, so a binary search finds the first step beyond a threshold.
    climbed = np.maximum.accumulate(np.where(before & ~np.isnan(values), values, -np.inf), axis=1)
    rose = [np.searchsorted(row, THRESHOLDS, side="right") + 1 for row in climbed]
    rose = [np.where(row > steps, 0, row) for row in rose]
    return pd.DataFrame({"failing": onsets > 0, "onset": onsets, "highest": climbed[:, -1], "rose": rose})


def _groups(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the runs by study and monitor, and by monitor alone, where both halves have failing and sound runs."""
    for name, members in [*table.groupby("study", sort=False), ("all", table)]:
        for monitor, runs in members.groupby("monitor", sort=False):
            if runs.groupby(["failing", runs["seed"] % 2]).ngroups == 4:
                yield str(name), str(monitor), runs


def roc(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many alarms are true and false at each threshold: columns study, monitor, threshold, true and false.

    Args:
        table: of `alarms`.
    """
    rows = []
    for name, monitor, runs in _groups(table):
        highest, failing = runs["highest"].to_numpy(), runs["failing"].to_numpy()
        for threshold in THRESHOLDS:
            above = highest > threshold
            row = {"study": name, "monitor": monitor, "threshold": threshold}
            rows.append(row | {"true": above[failing].mean(), "false": above[~failing].mean()})
    return pd.DataFrame(rows).drop_duplicates(["study", "monitor", "true", "false"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return how good each monitor is, at a threshold that is chosen on even seeds and judged on odd ones.

    The threshold is the lowest at which at most `MOST_FALSE` of the sound runs with even seeds alarm. Columns: study
    (or "all"), monitor, area under the ROC curve of all runs with its interval, threshold, n and m (failing and sound
    runs with odd seeds), true and false (shares of alarms among them) with Wilson's intervals, and the quartiles of the
    steps from alarm to NaN.

    Args:
        table: of `alarms`.
    """
    rows = []
    for name, monitor, runs in _groups(table):
        failing, highest = runs["failing"].to_numpy(), runs["highest"].to_numpy()
        even = runs["seed"].to_numpy() % 2 == 0
        area, low, high = area_under_roc(highest[failing], highest[~failing])
        sound = highest[even & ~failing]
        lowest = int(np.argmax([(sound > threshold).mean() <= MOST_FALSE for threshold in THRESHOLDS]))
        row: dict[str, Any] = {"study": name, "monitor": monitor, "area": area, "area_low": low, "area_high": high}
        row["threshold"] = THRESHOLDS[lowest]
        for what, size, members in (("true", "n", ~even & failing), ("false", "m", ~even & ~failing)):
            count, total = int((highest[members] > THRESHOLDS[lowest]).sum()), int(members.sum())
            ends = wilson(count, total)
            row |= {size: total, what: count / total, f"{what}_low": ends[0], f"{what}_high": ends[1]}
        judged = runs[~even & failing]
        at = np.array([rose[lowest] for rose in judged["rose"]])
        lead = (judged["onset"].to_numpy() - at)[at > 0]
        row |= {
            f"lead_{end}": float(np.quantile(lead, share)) if len(lead) else np.nan for end, share in QUARTILES.items()
        }
        rows.append(row)
    return pd.DataFrame(rows)


def area_under_roc(failing: NDArray[np.float64], sound: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the area under an ROC curve and its 95 % interval (DeLong, DeLong & Clarke-Pearson 1988).

    Args:
        failing: scores of the runs that should score higher, shape (n,).
        sound: of the others, shape (m,).

    Example:
        >>> area_under_roc(np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0]))[0]  # one of nine pairs is equal
        0.9444444444444444
    """
    below = _twice_below(failing, sound)
    area = float(below.sum() / 2 / (len(failing) * len(sound)))
    by_failing, by_sound = below / (2 * len(sound)), 1 - _twice_below(sound, failing) / (2 * len(failing))
    error = np.sqrt(by_failing.var(ddof=1) / len(failing) + by_sound.var(ddof=1) / len(sound))
    return area, float(max(0.0, area - 1.959964 * error)), float(min(1.0, area + 1.959964 * error))


def _twice_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return for each value twice the number of the others that are below it, equal ones counted once."""
    ordered = np.sort(others)
    return np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
