"""What a table of runs says, cell by cell: shares of the outcomes, and paired differences of two tables.

A cell is what differs only in its seed. Everything here reads `runs.csv` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from xor_study.analysis.statistics import holm, paired_difference
from xor_study.errors import StudyError
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import KEYS, OWN, key_of


def keys_of(runs: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Return the columns that tell the cells of a table apart: the axes as they were given, then what else varies."""
    own = [key_of(name) for name in OWN if key_of(name) in runs]
    varied = [key for key in own if runs[key].nunique(dropna=False) > 1]
    columns = [column for axis in dict.fromkeys([*axes, *varied]) for column in _columns(runs, axis)]
    return [key for key in dict.fromkeys(columns) if key != "seed"]


def _columns(runs: pd.DataFrame, axis: str) -> list[str]:
    """Return the columns that tell an axis's values apart: of a group, also parameters that differ within a choice."""
    if axis == "activation":
        return ["activation.hidden", "activation.output"]
    parameters = [column for column in runs.columns if column.startswith(f"{axis}.")]
    return [axis, *(p for p in parameters if runs.groupby(axis)[p].nunique(dropna=False).max() > 1)]


def cells(runs: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return how many runs of each cell came to which outcome: columns keys, runs, OUTCOMES; in the runs' order."""
    number = runs.groupby(list(keys), sort=False, dropna=False).ngroup() if keys else pd.Series(0, index=runs.index)
    counts = pd.crosstab(number, runs["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0)
    firsts = runs.loc[~number.duplicated(), list(keys)].set_axis(range(len(counts)), axis=0)
    return pd.concat([firsts, counts.sum(axis=1).rename("runs"), counts], axis=1)


def compared(one: pd.DataFrame, other: pd.DataFrame) -> tuple[dict[str, tuple[Any, Any]], pd.DataFrame]:
    """Return what two tables of runs differ in, and the paired differences of their outcomes.

    What is the same in all of one table, and something else in all of the other, is the difference; runs that agree in
    all other fields, the seed among them, are a pair. A run without a partner is left out.

    Returns:
        the values in both, by column; and a table with a row for each cell and outcome that occurs in it: columns keys,
        pairs, outcome, one, other (shares), difference, low, high (Newcombe's 95 % interval) and p (McNemar's
        exact test, adjusted by Holm's method).

    Raises:
        StudyError: if there are no pairs, or if a run could be paired with several.
    """
    differing = {key: (one[key].iloc[0], other[key].iloc[0]) for key in KEYS if _is_difference(one[key], other[key])}
    shared = [key for key in KEYS if key not in differing]
    left, right = (
        pd.DataFrame({key: _comparable(table[key]) for key in shared} | {"outcome": table["outcome"]})
        for table in (one, other)
    )
    for table in (left, right):
        if table.duplicated(shared).any():
            raise StudyError("runs can't be paired: some differ only in what the two folders differ in")
    pairs = left.merge(right, on=shared, suffixes=("", "_other"))
    if pairs.empty:
        apart = [key for key in shared if not set(left[key]) & set(right[key])]
        raise StudyError(f"no pairs: no two runs agree in {', '.join(apart) or 'all that the folders share'}")
    keys = keys_of(pairs, ())
    rows = []
    groups = pairs.groupby(keys, sort=False, dropna=False) if keys else [((), pairs)]
    for cell, members in groups:
        for outcome in OUTCOMES:
            before, after = members["outcome"] == outcome, members["outcome_other"] == outcome
            if before.any() or after.any():
                effect = paired_difference(before, after)
                row = dict(zip(keys, cell, strict=True)) | {"pairs": len(members), "outcome": outcome}
                row |= {"one": before.mean(), "other": after.mean(), "difference": effect.value}
                rows.append(row | {"low": effect.low, "high": effect.high, "p": effect.p})
    table = pd.DataFrame(rows)
    table["p"] = holm(list(table["p"]))
    return differing, table


def _is_difference(one: pd.Series[Any], other: pd.Series[Any]) -> bool:
    constant = one.nunique(dropna=False) == other.nunique(dropna=False) == 1
    return constant and _comparable(one.iloc[:1]).iloc[0] != _comparable(other.iloc[:1]).iloc[0]


def _comparable(column: pd.Series[Any]) -> pd.Series[str]:
    """Return a column that may have been read from a file as texts: a number as itself, a missing value as nothing."""
    codes, distinct = pd.factorize(column, use_na_sentinel=False)
    texts = ["" if pd.isna(value) else _number(value) for value in distinct.tolist()]
    return pd.Series(np.array(texts, dtype=object)[codes], index=column.index)


def _number(value: Any) -> str:
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else str(value)
