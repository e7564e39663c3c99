"""Runs by cell: a cell is all runs that differ in nothing but their seed.

Any table of runs can be counted cell by cell. `Study.where` also finds cells by how they differ from the article's
network, so its users need not know which grid a run came from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.statistics import wilson_intervals
from xor_study.errors import StudyError, typed
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import GROUPS, KEYS, OWN, RunSpec, key_of
from xor_study.training.table import distinct_rows

T = TypeVar("T")

CELL = [key for key in KEYS if key != "seed"]
"""The columns that tell cells apart."""

MEASURED = ("initial_loss", "final_loss", "max_abs_logit", "max_grad_norm")
"""Measures whose median a table of cells holds."""

QUARTILES = {"low": 0.25, "median": 0.5, "high": 0.75}


def keys_of(runs: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Return the columns that tell the cells of a table apart: the axes of its sweep in order, then what else varies.

    Args:
        runs: rows as in `runs.csv`.
        axes: keys or groups such as "lr" or "optimizer"; "seed" is ignored.
    """
    fields = [key_of(name) for name in OWN if key_of(name) in runs]
    varied = [key for key in fields if runs[key].nunique(dropna=False) > 1]
    columns = [column for axis in dict.fromkeys([*axes, *varied]) for column in _columns(runs, axis)]
    return [key for key in dict.fromkeys(columns) if key != "seed"]


def _columns(runs: pd.DataFrame, axis: str) -> list[str]:
    """Return the columns that tell an axis's values apart: of a group, also parameters that differ within a choice."""
    if axis == "activation":
        return ["activation.hidden", "activation.output"]
    parameters = [column for column in runs.columns if column.startswith(f"{axis}.")]
    return [axis, *(p for p in parameters if runs.groupby(axis)[p].nunique(dropna=False).max() > 1)]


def cells(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return how many runs of each cell had which outcome: columns keys, runs, OUTCOMES; in the runs' order.

    Args:
        runs: rows as in `runs.csv`.
        keys: of `keys_of`.
    """
    number = runs.groupby(list(keys), sort=False, dropna=False).ngroup() if keys else pd.Series(0, index=runs.index)
    counts = _outcome_counts(runs, number)
    firsts = runs.loc[~number.duplicated(), list(keys)].set_axis(counts.index, axis=0)
    return pd.concat([firsts, counts.sum(axis=1).rename("runs"), counts], axis=1)


def _outcome_counts(runs: pd.DataFrame, cell: pd.Series[Any]) -> pd.DataFrame:
    """Return the number of runs of each outcome: columns OUTCOMES, indexed by `cell`, the number of each run's cell."""
    return pd.crosstab(cell, runs["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0)


class Cells:
    """Cells and how they differ from the article's network.

    Args:
        table: a row for each cell, with the columns `CELL` (any others are passed on); the index is 0, 1, 2, ...

    Attributes:
        cells: the table.
        read: the indices of the cells that `where` has found so far.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.cells = table
        self.read: set[int] = set()
        self._kept = np.ones(len(table), bool)
        self._masks: dict[Any, NDArray[np.bool_]] = {}
        self._unusual = ~np.array([is_usual(table, key) for key in CELL])  # (keys, cells)

    def where(self, *free: str, **values: Any) -> pd.DataFrame:
        """Return the cells that are the article's network but for what is named.

        Args:
            free: keys that may be anything, such as "lr" or "optimizer.momentum".
            values: keys that must have a value, or one of a list of values; a dot may be written as two underscores.

        Returns:
            Rows of `cells`, with their index.
        """
        wanted = {key.replace("__", "."): value for key, value in values.items()}
        named = [key in wanted or key in free for key in CELL]
        chosen = self._kept & ~self._unusual[np.logical_not(named)].any(0)
        for key, value in wanted.items():
            chosen &= self._has(key, tuple(value) if isinstance(value, list | tuple) else (value,))
        self.read.update(np.flatnonzero(chosen).tolist())
        return self.cells[chosen]

    def _has(self, key: str, values: tuple[Any, ...]) -> NDArray[np.bool_]:
        """Return which cells have one of some values, shape (cells,); computed once for all restrictions."""
        # The types too: 1 and True are equal.
        named = (key, values, tuple(map(type, values)))
        if named not in self._masks:
            self._masks[named] = self.cells[key].isin(list(values)).to_numpy()
        return self._masks[named]

    def restricted(self, kept: NDArray[np.bool_]) -> Self:
        """Return the same cells with the same indices, of which `where` finds only some.

        Args:
            kept: which, shape (cells,).
        """
        result = copy.copy(self)
        result.read, result._kept = set(), self._kept & kept
        return result

    def one(self, **values: Any) -> int:
        """Return the index of the only cell that `where` finds.

        Raises:
            StudyError: if it finds none, or several.
        """
        matches = self.where(**values)
        if len(matches) != 1:
            wanted = " ".join(f"{key.replace('__', '.')}={typed(value)}" for key, value in values.items())
            raise StudyError(f"the study has {len(matches)} cells with {wanted or 'the article'}, it takes one")
        return int(matches.index[0])

    def row(self, **values: Any) -> pd.Series[Any]:
        """Return the only cell that `where` finds, as its row of `cells`."""
        return self.cells.iloc[self.one(**values)]


class Study(Cells):
    """Runs and their cells.

    Args:
        runs: rows as in `runs.csv`, each cell with the seeds 0, 1, 2, ...

    Attributes:
        runs: the same with a column `cell`, the index of a run's cell in `cells`, sorted by cell and seed.
        cells: a row for each cell: its columns `CELL`, `n`, for each outcome its count, its share and the ends of
            Wilson's interval (`solved_runs`, `solved`, `solved_low`, `solved_high`), the quartiles of `solved_step` and
            `first_nonfinite_step` among the runs that have one, and medians of `MEASURED`.

    Raises:
        StudyError: if there are no runs.

    Example:
        >>> from xor_study import RunSpec, train
        >>> specs = [RunSpec(lr=lr, seed=seed, batch="full") for lr in (0.01, 1.0) for seed in range(5)]
        >>> study = Study(train(specs).runs)
        >>> study.where("lr", batch="full")[["lr", "n", "solved"]].to_numpy().tolist()
        [[0.01, 5.0, 1.0], [1.0, 5.0, 1.0]]
        >>> study.one(lr=1.0, batch="full")
        1
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        if runs.empty:
            raise StudyError("a study needs runs")
        cell, firsts = distinct_rows((runs[key] for key in CELL), len(runs))
        # By cell and seed, so that a cell is a slice and two cells are paired by position.
        order = np.lexsort((runs["seed"].to_numpy(), cell))
        self.runs = runs.iloc[order].assign(cell=cell[order]).reset_index(drop=True)
        self._ends = np.append(0, np.cumsum(np.bincount(cell)))
        self._known: dict[Hashable, Any] = {}
        keys = runs[CELL].iloc[firsts].reset_index(drop=True)
        super().__init__(pd.concat([keys, _summary(self.runs)], axis=1))

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what `compute` returns, which is computed once for all restrictions of this study.

        Args:
            key: what is computed, with the cells that it is computed of.
            compute: how; it must not depend on which cells `where` finds.
        """
        if key not in self._known:
            self._known[key] = compute()
        result: T = self._known[key]
        return result

    def runs_of(self, cell: int) -> pd.DataFrame:
        """Return the runs of one cell, in the order of their seeds."""
        return self.runs.iloc[self._ends[cell] : self._ends[cell + 1]]

    def pooled(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the runs of several cells."""
        return self.runs[self.runs["cell"].isin(cells.index)]

    def pairs(self, first: int, second: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the runs of two cells that share their seeds, row by row."""
        one, other = self.runs_of(first), self.runs_of(second)
        common = min(len(one), len(other))  # seeds are 0, 1, 2, ...
        return one.head(common), other.head(common)


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell: how many runs, how they ended, when, and medians of their measures."""
    grouped, counts = runs.groupby("cell", sort=True), _outcome_counts(runs, runs["cell"])
    columns: dict[str, Any] = {"n": counts.sum(axis=1)}
    for outcome in OUTCOMES:
        count = counts[outcome]
        low, high = wilson_intervals(count, columns["n"])
        columns |= {f"{outcome}_runs": count, outcome: count / columns["n"]}
        columns |= {f"{outcome}_low": low, f"{outcome}_high": high}
    for step in ("solved_step", "first_nonfinite_step"):
        known = grouped[step]
        columns |= {f"{step}_{name}": known.quantile(share) for name, share in QUARTILES.items()}
    for name in MEASURED:
        columns[f"{name}_median"] = grouped[name].median()
    return pd.DataFrame(columns).reset_index(drop=True)


def is_usual(cells: pd.DataFrame, key: str) -> NDArray[np.bool_]:
    """Return which cells have the value of the article's network or, of a choice's parameter, its default.

    Returns:
        Booleans of shape (cells,).
    """
    group, _, name = key.partition(".")
    if key == "lr":  # the optimizer decides its default
        return _equal(cells[key], cells["optimizer"].map({o: RunSpec(optimizer=o).lr for o in GROUPS["optimizer"]}))
    if key == "batch":  # a number or "full"
        return (cells[key].astype(str) == str(RunSpec().batch)).to_numpy(bool)
    if not name or group not in GROUPS:
        return _equal(cells[key], pd.Series(getattr(RunSpec(), KEYS[key]), index=cells.index))
    parameters = {choice: GROUPS[group].parameters(choice) for choice in GROUPS[group]}
    defaults = {choice: known[name].default for choice, known in parameters.items() if name in known}
    return _equal(cells[key], cells[group].map(defaults))


def _equal(values: pd.Series[Any], usual: pd.Series[Any]) -> NDArray[np.bool_]:
    # As objects: a column of floats and one of categories are not comparable, and NaN is not equal to itself.
    return ((values.astype(object) == usual.astype(object)) | (values.isna() & usual.isna())).to_numpy(bool)


def curves(study: Study, losses: pd.DataFrame) -> pd.DataFrame:
    """Return median and quartiles of the recorded losses of each cell: columns cell, step, finite, low, median, high.

    They are those of the runs whose loss is finite at the step, `finite` of the cell's n.

    Args:
        study: the runs.
        losses: as `records.read_losses` returns them, a row for each run_id.
    """
    steps = losses.columns.to_numpy()
    rows = []
    values = losses.to_numpy()[losses.index.get_indexer(pd.Index(study.runs["run_id"]))]  # (runs, steps)
    values = np.where(np.isfinite(values), values, np.nan)  # sorts last, beyond the finite ones
    taken = (study.cells["epochs"] * study.cells["iterations"]).to_numpy()
    for cell in range(len(study.cells)):
        members = np.sort(values[study._ends[cell] : study._ends[cell + 1], steps <= taken[cell]], axis=0)
        finite = np.isfinite(members).sum(0)
        quartiles = _sorted_quantiles(members, finite, np.array(list(QUARTILES.values())))
        columns = {"cell": cell, "step": steps[steps <= taken[cell]], "finite": finite}
        rows.append(pd.DataFrame(columns | dict(zip(QUARTILES, quartiles, strict=True))))
    return pd.concat(rows, ignore_index=True)


def examples(study: Study, losses: pd.DataFrame) -> pd.DataFrame:
    """Return the recorded losses of each cell's median seed: columns cell, seed, step, loss.

    It is the run in the middle of those of its cell, sorted by outcome, final loss and seed.
    """
    rank = {outcome: number for number, outcome in enumerate(OUTCOMES)}
    runs = study.runs[["cell", "seed", "run_id", "final_loss", "epochs", "iterations"]]
    runs = runs.assign(rank=study.runs["outcome"].map(rank))
    ordered = runs.sort_values(["cell", "rank", "final_loss", "seed"], kind="stable")
    middle = ordered[ordered.groupby("cell").cumcount() == ordered.groupby("cell")["seed"].transform("size") // 2]
    steps = losses.columns.to_numpy()
    rows = []
    for run in middle.to_dict("records"):
        taken = steps <= run["epochs"] * run["iterations"]
        values = losses.loc[run["run_id"]].to_numpy()[taken]
        rows.append(pd.DataFrame({"cell": run["cell"], "seed": run["seed"], "step": steps[taken], "loss": values}))
    return pd.concat(rows, ignore_index=True)


def _sorted_quantiles(
    values: NDArray[np.floating[Any]], counts: NDArray[np.integer[Any]], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return quantiles of the first `counts` of each sorted column, linearly interpolated; NaN where there is none.

    Args:
        values: shape (runs, steps), each column sorted.
        counts: how many of each column count, shape (steps,).
        shares: which quantiles, shape (quantiles,).

    Returns:
        shape (quantiles, steps).
    """
    position = shares[:, None] * np.maximum(counts - 1, 0)
    low, part = np.floor(position).astype(int), position - np.floor(position)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    column = np.arange(values.shape[1])
    quantiles = values[low, column] * (1 - part) + values[high, column] * part
    return np.where(counts > 0, quantiles, np.nan)


def seeds_of_each_cell(study: Study, seeds: int) -> pd.DataFrame:
    """Return the runs of the first seeds of each cell."""
    return study.runs[study.runs["seed"] < seeds].drop(columns="cell")


def describe(values: Mapping[str, Any] | pd.Series[Any]) -> str:
    """Return what a cell differs in from the article's network, as one would type it.

    Args:
        values: by key, at least `CELL`.
    """
    row = pd.DataFrame([dict(values)], dtype=object)[CELL]
    given = [key for key in CELL if not is_usual(row, key)[0]]
    return " ".join(f"{key}={typed(values[key])}" for key in given) or "the article's network"
