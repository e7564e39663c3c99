"""Which number warns of a failure while training still looks sound, and how early: the article's last advice, measured.

A monitor is a number that is computed at every step. It raises an alarm at the first step at which it exceeds a
threshold. Of runs that go to NaN the steps before that count, of all others every step.

Every run of the chosen cells is in one of the classes `CLASSES`. Monitors are judged for two targets (`TARGETS`): does
an alarm mean that NaN will come, and does it mean that the run fails, be it by NaN or by staying broken. A run is
diverged by its loss, so for the second target the monitor of the loss has an advantage by definition.

A threshold is never judged on cells or seeds that chose it. The cells are halved by a digit of their identity, which
knows no outcome; of the first half the even seeds are trained again, of the second half the odd ones. Each half tunes
the thresholds that the other half is judged at (cross-fitting), so every run is judged once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis import axon
from xor_study.analysis.cells import CELL, QUARTILES, Study
from xor_study.analysis.statistics import Z, wilson
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

CLASSES = ("nonfinite", "broken", "unsolved", "sound", "immediate")
"""What becomes of a run, for monitors.

nonfinite: NaN after the first step. broken: diverged, or not solved with a loss that no run of the study solves XOR
with. unsolved: any other run that has not solved it, healthy but slow or stuck. sound: solved. immediate: NaN at the
first step, so there is no step at which to warn; these are counted and judged nowhere.
"""

JUDGED = CLASSES[:-1]
"""The classes of the runs that monitors are judged on."""

TARGETS: dict[str, tuple[str, ...]] = {"nonfinite": ("nonfinite",), "failure": ("nonfinite", "broken")}
"""The classes that an alarm should mean, by target. All others but "immediate" are negatives."""

REPORTED = "Axon 0.6.1"
"""How a setting of the reported failure begins."""

MOST_FALSE = 0.01
"""The share of sound runs that may alarm at the threshold that is chosen."""

THRESHOLDS = np.concatenate([[-np.inf], 10 ** (np.arange(-60, 181) / 20), [np.inf]])
"""Thresholds that are tried: 20 a decade from 1e-3 to 1e9, and the two at which all and no runs alarm."""

SEEDS = {"mechanism": 100, "axon_rates": 100, "learning_rate": 20, "batching": 40, "precision": 10, "loss": 20}
"""Of the first how many seeds of each cell every other one is trained again."""

RESAMPLES = 1000


def studies(study: Study) -> dict[str, pd.DataFrame]:
    """Return the cells that monitors are tried on, by the study that they belong to.

    Axon's loss is in two of them: "mechanism" has the optimizers and rates of `study=mechanism`, "axon_rates" the rates
    of `study=loss`. A cell that several studies ask for counts in the first, so no run is counted twice.
    """
    switches = [study.where(*axon.SWITCHES, loss=axon.LOSS, **setting) for setting in axon.SETTINGS.values()]
    named = {
        "mechanism": switches,
        "axon_rates": [study.where("lr", *axon.SWITCHES, loss=axon.LOSS)],
        "learning_rate": [study.where("lr", "optimizer")],
        "batching": [study.where("lr", "batch")],
        "precision": [study.where("lr", "loss", "dtype", "optimizer", batch="full", epochs=1, iterations=500)],
        "loss": [study.where("lr", "loss"), study.where("lr", "loss", activation__output=["identity", "tanh"])],
    }
    cells = pd.concat([pd.concat(tables).assign(study=name) for name, tables in named.items()])
    cells = cells[~cells.index.duplicated()]
    return {str(name): members for name, members in cells.groupby("study", sort=False)}


def halves(study: Study) -> NDArray[np.int64]:
    """Return which half, 0 or 1, each cell of a study belongs to: the parity of the identity of its first run.

    Returns:
        shape (cells,).
    """
    ids = study.runs.drop_duplicates("cell")["run_id"]
    return np.array([int(run_id[-1], 16) % 2 for run_id in ids])


def classes(study: Study) -> pd.Series[str]:
    """Return the class of each run of a study, one of `CLASSES`, indexed as `study.runs`."""
    runs = study.runs
    loss = [runs[key] for key in CELL if key.partition(".")[0] == "loss"]
    solvable = (runs["outcome"] == "solved").groupby(loss, dropna=False, observed=True).transform("any")
    first = runs["first_nonfinite_step"].fillna(0)
    broken = (runs["outcome"] == "diverged") | ((runs["outcome"] == "unsolved") & ~solvable)
    conditions = [first == 1, first > 1, broken, runs["outcome"] == "solved"]
    names = ["immediate", "nonfinite", "broken", "sound"]
    return pd.Series(np.select(conditions, names, "unsolved"), index=runs.index)


def alarms(
    study: Study, seeds: Mapping[str, int] = SEEDS, each: Callable[..., Iterable[pd.DataFrame]] = map
) -> pd.DataFrame:
    """Return each monitor's maximum per run and the first step at which it crossed each threshold.

    Trains every other one of the first seeds of each cell of `studies` again, with every step's history: even seeds of
    the cells of one half, odd seeds of the others.

    Args:
        study: whose runs are trained again.
        seeds: how many of each cell, by study; half of them are trained.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        Columns study, cell, half, seed, setting (see `_settings`), lr, class, onset (of NaN,
        0 for never), steps (of the run), monitor, highest (before the onset), and rose: the steps at which the monitor
        first exceeded each of `THRESHOLDS`, shape (thresholds,), 0 for never.
    """
    watched = _watched_runs(study, seeds)
    table = table_of(watched[list(KEYS)])
    onsets = watched["onset"].to_numpy(np.int64)
    # No machine code is made for half precisions, so these cohorts take longest and start first.
    members = sorted(cohort_rows(table), key=lambda rows: table["dtype"].iloc[rows[0]] not in HALF)
    parts = each(_watched, (table.iloc[rows] for rows in members), (onsets[rows] for rows in members))
    tables = [part.assign(row=rows[part["row"]]) for part, rows in zip(parts, members, strict=True)]
    result = pd.concat(tables).sort_values("row", kind="stable")
    columns = ["study", "cell", "half", "seed", "setting", "lr", "class", "onset", "steps"]
    labels = watched[columns].iloc[result["row"]].reset_index(drop=True)
    return pd.concat([labels, result.drop(columns="row").reset_index(drop=True)], axis=1)


def _watched_runs(study: Study, seeds: Mapping[str, int]) -> pd.DataFrame:
    """Return the runs that `alarms` trains again, with columns study, setting, half, class, onset and steps."""
    half, kind, chosen = halves(study), classes(study), []
    for name, cells in studies(study).items():
        runs = study.pooled(cells)
        runs = runs.assign(
            study=name, setting=_settings(runs, name), half=half[runs["cell"]], **{"class": kind[runs.index]}
        )
        chosen.append(runs[(runs["seed"] < seeds[name]) & (runs["seed"] % 2 == runs["half"])])
    watched = pd.concat(chosen)
    onset, steps = watched["first_nonfinite_step"].fillna(0).astype(np.int64), watched["epochs"] * watched["iterations"]
    return watched.assign(onset=onset, steps=steps)


def _settings(runs: pd.DataFrame, name: str) -> pd.Series[str]:
    """Return what the rows of `summary` tell runs of a study apart by: optimizer and rate, or in batching the batch.

    Axon 0.6.1, the reported failure, is told apart from other combinations of the switches.
    """
    if name == "batching":
        return pd.Series([f"batch {size}" for size in runs["batch"]], index=runs.index)
    reported = np.logical_and.reduce([(runs[key].astype(object) == value) for key, value in axon.BROKEN.items()])
    version = np.where(reported, f"{REPORTED} ", "")
    names = [f"{v}{o} {lr:g}" for v, o, lr in zip(version, runs["optimizer"], runs["lr"], strict=True)]
    return pd.Series(names, index=runs.index)


def _watched(table: pd.DataFrame, onsets: NDArray[np.int64]) -> pd.DataFrame:
    """Train runs that share a program and return columns row (the number of a run's row), monitor, highest and rose.

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
    rose = [np.where(row > steps, 0, row).astype(np.int32) for row in rose]
    return pd.DataFrame({"highest": climbed[:, -1], "rose": rose})


def tuned(runs: pd.DataFrame) -> NDArray[np.intp] | None:
    """Return which of `THRESHOLDS` each half chooses: the lowest at which at most `MOST_FALSE` of its sound runs alarm.

    Args:
        runs: rows of `alarms` with one monitor; of each half only the sound runs are read.

    Returns:
        shape (2,), by half; None if a half has no sound run.
    """
    chosen = []
    for half in (0, 1):
        sound = runs.loc[(runs["half"] == half) & (runs["class"] == "sound"), "highest"].to_numpy()
        if not len(sound):
            return None
        shares = (sound[:, None] > THRESHOLDS).mean(axis=0)
        chosen.append(int(np.argmax(shares <= MOST_FALSE)))
    return np.array(chosen)


def roc(table: pd.DataFrame) -> pd.DataFrame:
    """Return how many alarms are true and false at each threshold, from (0, 0) to (1, 1).

    Columns study (or "all"), monitor, target, threshold, true (share of the target's classes) and false (share of all
    other runs but the immediate ones). Needs no tuning, so all runs count.

    Args:
        table: of `alarms`.
    """
    rows = []
    for (name, monitor), runs in _groups(table).items():
        for target, positives in TARGETS.items():
            failing, others = _scores(runs, positives)
            if len(failing) and len(others):
                true, false = ((values[:, None] > THRESHOLDS).mean(axis=0) for values in (failing, others))
                columns = {"study": name, "monitor": monitor, "target": target, "threshold": THRESHOLDS}
                rows.append(pd.DataFrame(columns | {"true": true, "false": false}))
    return pd.concat(rows).drop_duplicates(["study", "monitor", "target", "true", "false"]).reset_index(drop=True)


def _groups(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return the runs by study (or "all") and monitor, without the immediate ones."""
    judged = table[table["class"] != "immediate"]
    groups: dict[tuple[str, str], pd.DataFrame] = {}
    for monitor, members in judged.groupby("monitor", sort=False):
        groups |= {(str(name), str(monitor)): runs for name, runs in members.groupby("study", sort=False)}
        groups["all", str(monitor)] = members
    return groups


def _scores(runs: pd.DataFrame, positives: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the maxima of the runs of some classes and of all other runs."""
    failing, highest = runs["class"].isin(positives).to_numpy(), runs["highest"].to_numpy()
    return highest[failing], highest[~failing]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return how good each monitor is for each target, at thresholds tuned on the other half of cells and seeds.

    Args:
        table: of `alarms`.

    Returns:
        A row for each monitor, target and group of runs. Which runs they are: tuned_on (the study whose sound runs tune
        the thresholds) and study (whose runs are judged), each the same name or "all", or thresholds of "mechanism" for
        each other study; setting, an optimizer and its rate or a batch size (with lr, as a number), missing where the
        row has the whole study. A row of one setting is left out where nothing fails and no alarm is false.

        threshold_0 and threshold_1 are tuned on the first and the second half and judge the other. Counts: `CLASSES` in
        the judged runs, and alarmed_nonfinite, alarmed_broken, alarmed_unsolved, alarmed_sound. prevalence is the share
        of the target among them. precision (share of alarms that mean the target), recall (share of the target with an
        alarm) and specificity (share of sound runs without one) have Wilson's intervals in _low and _high, for
        independent runs of just these cells. false_rate is the number of false alarms per 1,000 steps of sound
        training, each run watched until its first alarm (see `false_alarm_rate`). lead_low, lead_median and lead_high
        are quartiles of the steps from alarm to NaN. area is that under the ROC curve (see `area_under_roc`), in rows
        of whole studies with thresholds of their own. What is undefined, such as the precision of no alarm, is missing.
    """
    missed = table[table["class"] == "immediate"]
    immediate = Counter(
        [*zip(missed["study"], missed["monitor"], strict=True), *(("all", m) for m in missed["monitor"])]
    )
    rows = []
    for labels, runs in _judged(table):
        whole, own = labels["setting"] is None, labels["tuned_on"] == labels["study"]
        counts = runs.counts()
        if not (whole or counts["nonfinite"] or counts["broken"] or counts["alarmed_sound"]):
            continue
        counts["immediate"] = immediate[labels["study"], labels["monitor"]] if whole else 0
        shared = labels | counts | runs.false_alarms() | runs.lead()
        for target, positives in TARGETS.items():
            area = runs.area(positives) if whole and own else {}
            rows.append(shared | {"target": target} | _shares(counts, positives) | area)
    return pd.DataFrame(rows)


class _Judged(NamedTuple):
    """Runs with the alarms of one monitor, arrays of shape (runs,): see `alarms`; `kind` is an index of `CLASSES`."""

    kind: NDArray[np.intp]
    highest: NDArray[np.float64]
    at: NDArray[np.int64]
    onset: NDArray[np.int64]
    steps: NDArray[np.int64]
    cell: NDArray[np.int64]

    def of(self, rows: Any) -> _Judged:
        return _Judged._make(values[rows] for values in self)

    def counts(self) -> dict[str, int]:
        """Return the number of runs of each class that is judged, and of those that alarmed."""
        total, alarmed = (np.bincount(kind, minlength=len(CLASSES)) for kind in (self.kind, self.kind[self.at > 0]))
        counts = {name: int(total[CLASSES.index(name)]) for name in JUDGED}
        return counts | {f"alarmed_{name}": int(alarmed[CLASSES.index(name)]) for name in JUDGED}

    def false_alarms(self) -> dict[str, float]:
        """Return the rate of false alarms in sound runs with its interval."""
        sound = self.of(np.flatnonzero(self.kind == CLASSES.index("sound")))
        rate = false_alarm_rate(sound.at, sound.steps, sound.cell)
        return dict(zip(("false_rate", "false_rate_low", "false_rate_high"), rate, strict=True))

    def lead(self) -> dict[str, float]:
        """Return the quartiles of the steps from alarm to NaN, NaN where there is none."""
        lead = (self.onset - self.at)[(self.kind == CLASSES.index("nonfinite")) & (self.at > 0)]
        return {f"lead_{end}": float(np.quantile(lead, q)) if len(lead) else math.nan for end, q in QUARTILES.items()}

    def area(self, positives: tuple[str, ...]) -> dict[str, float]:
        """Return the area under the ROC curve with its interval."""
        failing = np.isin(self.kind, [CLASSES.index(name) for name in positives])
        sides = (self.highest[failing], self.highest[~failing], self.cell[failing], self.cell[~failing])
        return dict(zip(("area", "area_low", "area_high"), area_under_roc(*sides), strict=True))


def _judged(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], _Judged]]:
    """Yield the labels of the rows of `summary` and the runs of each, whole studies and then their settings."""
    groups = _groups(table)
    for (name, monitor), runs in groups.items():
        rose = np.stack(runs["rose"].to_list())
        kind = np.array([CLASSES.index(value) for value in runs["class"]])
        settings = runs.groupby("setting", sort=False).indices
        for source in dict.fromkeys((name, "mechanism")) if name != "all" else ("all",):
            chosen = tuned(groups[source, monitor]) if (source, monitor) in groups else None
            if chosen is None:
                continue
            at = rose[np.arange(len(runs)), chosen[1 - runs["half"].to_numpy()]].astype(np.int64)
            columns = (runs[column].to_numpy() for column in ("onset", "steps", "cell"))
            judged = _Judged(kind, runs["highest"].to_numpy(), at, *columns)
            labels = {"tuned_on": source, "study": name, "setting": None, "lr": math.nan, "monitor": monitor}
            labels |= {f"threshold_{half}": THRESHOLDS[chosen[half]] for half in (0, 1)}
            yield labels, judged
            for setting, rows in settings.items() if name != "all" else ():
                own = {"setting": setting, "lr": math.nan if name == "batching" else runs["lr"].iloc[rows[0]]}
                yield labels | own, judged.of(rows)


def _shares(counts: Mapping[str, int], positives: tuple[str, ...]) -> dict[str, float]:
    """Return prevalence, precision, recall and specificity with Wilson's intervals, NaN where there is no run."""
    failing = sum(counts[name] for name in positives)
    true = sum(counts[f"alarmed_{name}"] for name in positives)
    fractions = {
        "precision": (true, sum(counts[f"alarmed_{name}"] for name in JUDGED)),
        "recall": (true, failing),
        "specificity": (counts["sound"] - counts["alarmed_sound"], counts["sound"]),
    }
    row = {"prevalence": failing / sum(counts[name] for name in JUDGED)}
    for name, (count, total) in fractions.items():
        low, high = wilson(count, total) if total else (math.nan, math.nan)
        row |= {name: count / total if total else math.nan, f"{name}_low": low, f"{name}_high": high}
    return row


def false_alarm_rate(
    at: NDArray[np.integer[Any]], steps: NDArray[np.integer[Any]], cells: NDArray[np.integer[Any]]
) -> tuple[float, float, float]:
    """Return the number of alarms per 1,000 steps that were watched, with an interval of at least 95 %.

    A run is watched until its first alarm, or to its end. The interval is the wider one, at each end, of Poisson's
    exact interval (Garwood 1936), which also holds for no alarm, and a percentile bootstrap over the cells (1,000
    resamples, fixed seed), which also holds where cells differ.

    Args:
        at: the step of each run's first alarm, 0 for never, shape (runs,).
        steps: that each run takes, likewise.
        cells: the cell of each run, likewise.

    Example:
        >>> rate, low, high = false_alarm_rate(np.array([0, 500]), np.array([1000, 1000]), np.array([1, 1]))
        >>> round(rate, 4)  # one alarm in 1,500 steps
        0.6667
    """
    from scipy.stats import chi2

    if not len(at):
        return math.nan, math.nan, math.nan
    watched = np.where(at > 0, at, steps) / 1000
    count, exposure = int((at > 0).sum()), float(watched.sum())
    low = float(chi2.ppf(0.025, 2 * count)) / 2 / exposure if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2 / exposure
    _, cell = np.unique(cells, return_inverse=True)
    by_cell = np.stack([np.bincount(cell, at > 0), np.bincount(cell, watched)])  # (2, cells)
    size = by_cell.shape[1]
    alarmed, total = by_cell @ _weights(size)
    ends = np.quantile(alarmed / total, [0.025, 0.975])
    return count / exposure, min(low, float(ends[0])), max(high, float(ends[1]))


@cache
def _weights(size: int) -> NDArray[np.float64]:
    """Return how often each of some cells is drawn in each resample, shape (cells, resamples)."""
    draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    return draws.T.astype(np.float64)


def area_under_roc(
    failing: NDArray[np.float64],
    others: NDArray[np.float64],
    failing_cells: NDArray[np.integer[Any]],
    other_cells: NDArray[np.integer[Any]],
) -> tuple[float, float, float]:
    """Return the area under an ROC curve and its 95 % interval for runs that come in cells (Obuchowski 1997).

    Runs of one cell are alike, so the cells are what is independent. If each run is a cell of its own, the interval is
    that of DeLong, DeLong & Clarke-Pearson (1988).

    Args:
        failing: scores of the runs that should score higher, shape (n,).
        others: of the others, shape (m,).
        failing_cells: the cell of each failing run, shape (n,).
        other_cells: of the others, shape (m,).

    Returns:
        All NaN if there are no runs on a side; the interval NaN if they are of one cell.

    Example:
        >>> one, other = np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0])
        >>> round(area_under_roc(one, other, np.array([0, 1, 2]), np.array([3, 4, 5]))[0], 6)  # one of 9 pairs is equal
        0.944444
    """
    n, m = len(failing), len(others)
    if not (n and m):
        return math.nan, math.nan, math.nan
    by_failing = _twice_below(failing, others) / (2 * m)
    by_others = 1 - _twice_below(others, failing) / (2 * n)
    area = float(by_failing.mean())
    cells, cell = np.unique(np.concatenate([failing_cells, other_cells]), return_inverse=True)
    # Of each cell the sum of its runs' deviations; 0 for a cell without runs on that side.
    first = np.bincount(cell[:n], by_failing - area, minlength=len(cells))
    second = np.bincount(cell[n:], by_others - area, minlength=len(cells))
    sizes = [len(np.unique(part)) for part in (failing_cells, other_cells)]
    if min(sizes) < 2:
        return area, math.nan, math.nan
    (k, j), i = sizes, len(cells)
    variance = k / (k - 1) * (first @ first) / n**2 + j / (j - 1) * (second @ second) / m**2
    variance += 2 * i / (i - 1) * (first @ second) / (n * m)
    error = math.sqrt(max(0.0, float(variance)))
    return area, max(0.0, area - Z * error), min(1.0, area + Z * error)


def _twice_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return for each value twice the number of the others that are below it, equal ones counted once."""
    ordered = np.sort(others)
    return np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")


class Advice(NamedTuple):
    """What the table of `summary` says about the article's advice to monitor training; see `advice`."""

    verdict: str
    effect: float
    low: float
    high: float
    n: int
    sentence: str


WARNS, QUIET, USELESS = 0.9, 0.95, 0.5
"""The least share of failures with an alarm, the least share of sound runs without one, and the share of failures with
an alarm that refutes. These are the limits that the claim had before its thresholds were judged on other cells."""

JUDGED_BY = "loss above its start"
"""The monitor that the advice is judged by: every training loop has the number already."""


def advice(table: pd.DataFrame) -> Advice:
    """Return verdict, effect and sentence of the claim that monitoring shows numerical anomalies early.

    It is judged by the monitor `JUDGED_BY` on the study mechanism, at thresholds tuned on other cells and seeds, for
    the target "failure". Supported if the intervals of recall and specificity lie above `WARNS` and `QUIET` and the
    median alarm comes before NaN at each rate of Axon 0.6.1 that has NaN; refuted if the recall's interval lies below
    `USELESS` or that of specificity below `QUIET`; else undecided, as with fewer sound runs than it takes to choose a
    threshold that 1 % of them may cross, which is 100 in each half. The effect is the recall, n the number of failing
    runs.

    The sentence adds how many alarms mean NaN and how early, by rate; how often the same thresholds alarm in sound runs
    of other studies; and the best monitor of each target over all studies, by recall plus specificity.

    Args:
        table: of `summary`, fresh or read from a file; its columns tuned_on, study, setting, monitor, target, the
            counts, precision, recall, specificity and lead are read.
    """
    rows = table[(table["tuned_on"] == "mechanism") & (table["monitor"] == JUDGED_BY)]
    whole = rows[rows["setting"].isna()]
    row = whole[(whole["study"] == "mechanism") & (whole["target"] == "failure")].iloc[0]
    settings = rows[(rows["study"] == "mechanism") & rows["setting"].notna() & (rows["target"] == "nonfinite")]
    settings = settings[(settings["nonfinite"] > 0) & settings["setting"].str.startswith(REPORTED)]
    warns = row["recall_low"] > WARNS and bool((settings["lead_median"] > 0).all())
    verdict = "supported" if warns and row["specificity_low"] > QUIET else "undecided"
    verdict = "refuted" if row["recall_high"] < USELESS or row["specificity_high"] < QUIET else verdict
    verdict = verdict if row["sound"] >= 2 / MOST_FALSE else "undecided"
    ends = sorted((row["threshold_0"], row["threshold_1"]))
    sentences = [
        f"With Axon's loss a mean loss above {ends[0]:.3g} to {ends[1]:.3g} times its start, tuned on other cells and "
        f"seeds, warns of {_percent(row['recall'])} of failures and alarms in {_percent(1 - row['specificity'])} of "
        f"sound runs ({row['false_rate']:.2g} per 1,000 steps).",
        *(_of_setting(setting) for _, setting in settings.iterrows()),
    ]
    elsewhere = whole[(whole["study"] != "mechanism") & (whole["target"] == "nonfinite") & (whole["sound"] > 0)]
    if len(elsewhere):
        shares = elsewhere["alarmed_sound"] / elsewhere["sound"]
        sentences.append(
            f"In the {len(elsewhere)} other studies the same thresholds alarm in {_percent(shares.min())} to "
            f"{_percent(shares.max())} of sound runs."
        )
    everything = table[table["tuned_on"] == "all"]
    for target, word in {"nonfinite": "NaN", "failure": "NaN or divergence"}.items():
        monitors = everything[everything["target"] == target]
        if not monitors["recall"].isna().all():
            best = monitors.iloc[int((monitors["recall"] + monitors["specificity"]).argmax())]
            sentences.append(
                f"Over all studies the best monitor of {word} is {best['monitor']}: it warns of "
                f"{_percent(best['recall'])}, and {_percent(best['precision'])} of its alarms are right."
            )
    failing = int(row["nonfinite"] + row["broken"])
    return Advice(verdict, row["recall"], row["recall_low"], row["recall_high"], failing, " ".join(sentences))


def _of_setting(row: pd.Series[Any]) -> str:
    """Return how many alarms of one version, optimizer and rate mean NaN, and how long before."""
    runs = sum(row[name] for name in JUDGED)
    words = (
        f"With {row['setting']}, {row['nonfinite']:,} of {runs:,} runs go to NaN and {row['alarmed_nonfinite']:,} of "
        f"these alarm; {_percent(row['precision'])} of alarms mean NaN"
    )
    if not row["alarmed_nonfinite"]:
        return f"{words}."
    lead = (f"{row[f'lead_{end}']:,.0f}" for end in ("median", "low", "high"))
    return "{}, {} steps later in the median (quartiles {} and {}).".format(words, *lead)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
