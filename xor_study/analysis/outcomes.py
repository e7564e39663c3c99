"""Outcomes of any number of runs in little memory: which cell, which seed, which outcome, 13 bytes a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.errors import StudyError
from xor_study.training.outcome import OUTCOMES
from xor_study.training.table import distinct_rows

SLICE = 1 << 20


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of runs, and the cells that the runs belong to.

    Attributes:
        cells: the settings of each cell, columns CELL as in `runs.csv`, in the order in which they are shown; a cell
            may have no runs. Its index is 0, 1, 2, ...
        cell: which of them each run belongs to, shape (runs,).
        seed: of each run, shape (runs,).
        outcome: of each run, as its position in OUTCOMES, shape (runs,).

    Example:
        >>> runs = pd.DataFrame({key: [None] * 3 for key in CELL} | {"lr": [0.1, 1.0, 0.1], "seed": [0, 0, 1]})
        >>> found = Outcomes.of([runs.assign(outcome=["solved", "nonfinite", "unsolved"])])
        >>> found.cells["lr"].tolist(), found.cell.tolist()
        ([0.1, 1.0], [0, 1, 0])
        >>> found.counts()["solved"].tolist()
        [1, 0]
    """

    cells: pd.DataFrame
    cell: NDArray[np.int32]
    seed: NDArray[np.int64]
    outcome: NDArray[np.uint8]

    @classmethod
    def of(cls, tables: Iterable[pd.DataFrame]) -> Self:
        """Return the outcomes of all runs of some tables, read one after another.

        Args:
            tables: rows as in `runs.csv`; columns that are not needed may be missing.
        """
        return cls.joined(_of_table(table) for table in tables if len(table))

    @classmethod
    def joined(cls, blocks: Iterable[Outcomes]) -> Self:
        """Return several outcomes as one, equal cells as one cell, in the order in which they come first.

        Raises:
            StudyError: if there are no runs.
        """
        settings, runs = [], []
        for block in blocks:
            settings.append(cells_to_json(block.cells))
            runs.append((block.cell, block.seed, block.outcome))
        if not runs:
            raise StudyError("no runs")
        cells, numbers = _union(settings)
        cell = np.concatenate([number[cell] for number, (cell, _, _) in zip(numbers, runs, strict=True)])
        return cls(cells, cell, np.concatenate([run[1] for run in runs]), np.concatenate([run[2] for run in runs]))

    def __len__(self) -> int:
        return len(self.cell)

    def restricted(self, kept: NDArray[np.bool_] | bool = True) -> Outcomes:
        """Return the runs of some cells, and of the cells only those that have runs.

        Args:
            kept: which cells, shape (cells,), or all.
        """
        kept = kept & (np.bincount(self.cell, minlength=len(self.cells)) > 0)
        if kept.all():
            return self
        runs, number = kept[self.cell], np.cumsum(kept, dtype=np.int32) - 1
        cells = self.cells[kept].reset_index(drop=True)
        return Outcomes(cells, number[self.cell[runs]], self.seed[runs], self.outcome[runs])

    def by(self, keys: Sequence[str]) -> pd.DataFrame:
        """Return the counts of cells that agree in some settings: columns keys, runs, OUTCOMES; in the cells' order.

        Args:
            keys: some of CELL; without any, all runs are counted together.
        """
        counts = self.counts()
        counts = counts[counts.sum(axis=1) > 0]
        settings = self.cells.loc[counts.index, list(keys)]
        number, firsts = distinct_rows((settings[key] for key in keys), len(settings))
        table = counts.groupby(number).sum()
        table.insert(0, "runs", table.sum(axis=1))
        return pd.concat([settings.iloc[firsts].reset_index(drop=True), table], axis=1)

    def counts(self) -> pd.DataFrame:
        """Return how many runs of each cell had which outcome: columns OUTCOMES, indexed as `cells`."""
        counts = np.zeros(len(self.cells) * len(OUTCOMES), np.int64)
        for start in range(0, len(self), SLICE):  # or what is computed of each run would need more memory than the runs
            span = slice(start, start + SLICE)
            number = self.cell[span].astype(np.int64) * len(OUTCOMES) + self.outcome[span]
            counts += np.bincount(number, minlength=len(counts))
        return pd.DataFrame(counts.reshape(-1, len(OUTCOMES)), columns=list(OUTCOMES))


def _union(tables: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[NDArray[np.int32]]]:
    """Return the distinct cells of tables written by `cells_to_json`, and the number of each of their cells in it."""
    first = tables[0]
    # Most settings are the same in all cells: only those that differ are looked up.
    varied = [key for key in CELL if isinstance(first[key], list) or any(one[key] != first[key] for one in tables)]
    known: dict[tuple[Any, ...], int] = {}
    numbers = []
    for one in tables:
        columns = [one[key] if isinstance(one[key], list) else [one[key]] * one["count"] for key in varied]
        rows = zip(range(one["count"]), *columns, strict=True)
        numbers.append(np.array([known.setdefault(row[1:], len(known)) for row in rows], np.int32))
    values = {key: [row[at] for row in known] for at, key in enumerate(varied)}
    cells = pd.DataFrame({key: values.get(key, first[key]) for key in CELL}, index=range(len(known)))
    return cells, numbers


def cells_to_json(cells: pd.DataFrame) -> dict[str, Any]:
    """Return a table of cells as JSON can hold it: of a setting that all of them share only the one value."""
    values = {key: _plain(cells[key]) for key in CELL}
    return {"count": len(cells)} | {
        key: column[0] if len(set(column)) == 1 else column for key, column in values.items()
    }


def cells_from_json(written: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table that `cells_to_json` was given, as it would be read from `runs.csv`.

    Raises:
        KeyError, TypeError, ValueError: if it is none.
    """
    return pd.DataFrame({key: written[key] for key in CELL}, index=range(written["count"])).astype({"batch": str})


def _of_table(runs: pd.DataFrame) -> Outcomes:
    cell, firsts = distinct_rows((runs[key] for key in CELL), len(runs))
    cells = runs[CELL].iloc[firsts].reset_index(drop=True)
    outcome = pd.Categorical(runs["outcome"], categories=pd.Index(OUTCOMES))
    if (outcome.codes < 0).any():
        raise StudyError(f"outcome: must be one of {', '.join(OUTCOMES)}")
    return Outcomes(cells, cell.astype(np.int32), runs["seed"].to_numpy(np.int64), outcome.codes.astype(np.uint8))


def _plain(column: pd.Series[Any]) -> Sequence[Any]:
    """Return values as Python's own, None for each missing one: NaN is not equal to itself."""
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values
