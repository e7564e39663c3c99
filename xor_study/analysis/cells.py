"""A study's runs by cell: what its claims, its figures and its page read.

A cell is all runs that differ in nothing but their seed. `Study.where` finds cells by how they differ from the
article's network, so nobody needs to know which grid a run came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.statistics import wilson
from xor_study.errors import StudyError
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import GROUPS, KEYS, RunSpec
from xor_study.training.table import distinct_rows

CELL = [key for key in KEYS if key != "seed"]
"""The columns that tell cells apart."""

MEASURED = ("initial_loss", "final_loss", "max_abs_logit", "max_grad_norm")
"""Measures whose median a table of cells holds."""

QUARTILES = {"low": 0.25, "median": 0.5, "high": 0.75}


class Cells:
    """Cells and how they differ from the article's network.

    Args:
        table: a row for each cell, with the columns `CELL` (any others are passed on); the index is 0, 1, 2, ...

    Attributes:
        cells: the table.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.cells = table
        self._usual: dict[str, NDArray[np.bool_]] = {key: _is_usual(table, key) for key in CELL}

    def where(self, *free: str, **values: Any) -> pd.DataFrame:
        """Return the cells that are the article's network but for what is named.

        Args:
            free: keys that may be anything, such as "lr" or "optimizer.momentum".
            values: keys that must have a value, or one of a list of values; a dot is written as two underscores.
        """
        wanted = {key.replace("__", "."): value for key, value in values.items()}
        kept = np.ones(len(self.cells), bool)
        for key in CELL:
            if key in wanted:
                value = wanted[key]
                kept &= self.cells[key].isin(value if isinstance(value, list | tuple) else [value]).to_numpy()
            elif key not in free:
                kept &= self._usual[key]
        return self.cells[kept]

    def one(self, **values: Any) -> int:
        """Return the place of the only cell that `where` finds.

        Raises:
            StudyError: if it finds none, or several.
        """
        found = self.where(**values)
        if len(found) != 1:
            told = " ".join(f"{key.replace('__', '.')}={value}" for key, value in values.items())
            raise StudyError(f"the study has {len(found)} cells with {told or 'the article'}, it takes one")
        return int(found.index[0])


class Study(Cells):
    """Runs and their cells.

    Args:
        runs: rows as in `runs.csv`, each cell with the seeds 0, 1, 2, ...

    Attributes:
        runs: the same with a column `cell`, the place of a run's cell in `cells`, sorted by cell and seed.
        cells: a row for each cell: its columns `CELL`, `n`, for each outcome its count, its share and the ends of
            Wilson's interval (`solved_runs`, `solved`, `solved_low`, `solved_high`), the quartiles of `solved_step` and
            `first_nonfinite_step` among the runs that have one, and medians of `MEASURED`.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        if runs.empty:
            raise StudyError("a study needs runs")
        place, firsts = distinct_rows((runs[key] for key in CELL), len(runs))
        order = np.lexsort((runs["seed"].to_numpy(), place))
        self.runs = runs.iloc[order].assign(cell=place[order]).reset_index(drop=True)
        self._ends = np.append(0, np.cumsum(np.bincount(place)))
        keys = runs[CELL].iloc[firsts].reset_index(drop=True)
        super().__init__(pd.concat([keys, _summary(self.runs)], axis=1))

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
    """Return a row for each cell: how many runs, how they ended, when, and what was measured."""
    grouped = runs.groupby("cell", sort=True)
    columns: dict[str, Any] = {"n": grouped.size()}
    for outcome in OUTCOMES:
        count = (runs["outcome"] == outcome).groupby(runs["cell"]).sum()
        ends = np.array([wilson(int(k), int(n)) for k, n in zip(count, columns["n"], strict=True)])
        columns |= {f"{outcome}_runs": count, outcome: count / columns["n"]}
        columns |= {f"{outcome}_low": ends[:, 0], f"{outcome}_high": ends[:, 1]}
    for step in ("solved_step", "first_nonfinite_step"):
        known = grouped[step]
        columns |= {f"{step}_{name}": known.quantile(share) for name, share in QUARTILES.items()}
    for name in MEASURED:
        columns[f"{name}_median"] = grouped[name].median()
    return pd.DataFrame(columns).reset_index(drop=True)


def _is_usual(cells: pd.DataFrame, key: str) -> NDArray[np.bool_]:
    """Return which cells have the value that the article's network has, or that their choice has by default."""
    group, _, name = key.partition(".")
    if key == "lr":
        return _equal(cells[key], cells["optimizer"].map({o: RunSpec(optimizer=o).lr for o in GROUPS["optimizer"]}))
    if key == "batch":  # a number or "full"
        return (cells[key].astype(str) == str(RunSpec().batch)).to_numpy(bool)
    if not name or group not in GROUPS:
        return _equal(cells[key], pd.Series(getattr(RunSpec(), KEYS[key]), index=cells.index))
    defaults = {
        choice: found[name].default
        for choice, found in ((choice, GROUPS[group].parameters(choice)) for choice in GROUPS[group])
        if name in found
    }
    return _equal(cells[key], cells[group].map(defaults))


def _equal(values: pd.Series[Any], usual: pd.Series[Any]) -> NDArray[np.bool_]:
    return ((values.astype(object) == usual.astype(object)) | (values.isna() & usual.isna())).to_numpy(bool)


def curves(study: Study, losses: pd.DataFrame) -> pd.DataFrame:
    """Return median and quartiles of the recorded losses of each cell: columns cell, step, finite, low, median, high.

    They are those of the runs whose loss is still finite, `finite` of the cell's n.

    Args:
        study: the runs.
        losses: as `records.read_losses` returns them, a row for each run_id.
    """
    steps = losses.columns.to_numpy()
    rows = []
    values = losses.to_numpy()[losses.index.get_indexer(pd.Index(study.runs["run_id"]))]  # (runs, steps)
    values = np.where(np.isfinite(values), values, np.nan)
    taken = (study.cells["epochs"] * study.cells["iterations"]).to_numpy()
    for cell in range(len(study.cells)):
        members = np.sort(values[study._ends[cell] : study._ends[cell + 1], steps <= taken[cell]], axis=0)  # NaN last
        finite = np.isfinite(members).sum(0)
        quartiles = _sorted_quantiles(members, finite, np.array(list(QUARTILES.values())))
        columns = {"cell": cell, "step": steps[steps <= taken[cell]], "finite": finite}
        rows.append(pd.DataFrame(columns | dict(zip(QUARTILES, quartiles, strict=True))))
    return pd.concat(rows, ignore_index=True)


def examples(study: Study, losses: pd.DataFrame) -> pd.DataFrame:
    """Return the recorded losses of each cell's median seed: columns cell, seed, step, loss.

    It is the run in the middle of those of its cell, sorted by outcome, final loss and seed.
    """
    rank = {outcome: place for place, outcome in enumerate(OUTCOMES)}
    runs = study.runs[["cell", "seed", "run_id", "final_loss", "epochs", "iterations"]]
    runs = runs.assign(rank=study.runs["outcome"].map(rank))
    ordered = runs.sort_values(["cell", "rank", "final_loss", "seed"], kind="stable")
    middle = ordered[ordered.groupby("cell").cumcount() == ordered.groupby("cell")["seed"].transform("size") // 2]
    steps = losses.columns.to_numpy()
    rows = []
    for run in middle.to_dict("records"):
        kept = steps <= run["epochs"] * run["iterations"]
        values = losses.loc[run["run_id"]].to_numpy()[kept]
        rows.append(pd.DataFrame({"cell": run["cell"], "seed": run["seed"], "step": steps[kept], "loss": values}))
    return pd.concat(rows, ignore_index=True)


def _sorted_quantiles(
    values: NDArray[np.floating[Any]], counts: NDArray[np.integer[Any]], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return quantiles of the first `counts` of each sorted column, linearly interpolated; NaN where there is none."""
    place = shares[:, None] * np.maximum(counts - 1, 0)
    low, part = np.floor(place).astype(int), place - np.floor(place)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    column = np.arange(values.shape[1])
    found = values[low, column] * (1 - part) + values[high, column] * part
    return np.where(counts > 0, found, np.nan)


def seeds_of_each_cell(study: Study, seeds: int) -> pd.DataFrame:
    """Return the runs of the first seeds of each cell."""
    return study.runs[study.runs["seed"] < seeds].drop(columns="cell")


def describe(values: Mapping[str, Any] | pd.Series[Any]) -> str:
    """Return what a cell differs in from the article's network, as one would type it."""
    cells = pd.DataFrame([dict(values)], dtype=object)[CELL]
    given = [key for key in CELL if not _is_usual(cells, key)[0]]
    return " ".join(f"{key}={_typed(values[key])}" for key in given) or "the article's network"


def _typed(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool | np.bool_)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
