"""Digests of the runs of each cell: with them the committed table of cells covers every run, not only those kept.

A digest is over seed, outcome and measures of the runs of a cell, in the order of their seeds, bit for bit. It depends
neither on the names nor on the order of a table's columns, so a new setting of a run changes no digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import Study
from xor_study.training.outcome import NUMBERS, OUTCOMES

RECORDED = ("outcome", "accuracy", "solved_step", "first_nonfinite_step", *NUMBERS)
"""The columns of a run that a digest covers, besides its seed."""

DIGITS = 16
"""Hexadecimal digits of a digest: that two tables of different runs share one has a probability of 2^-64."""

ALL, TENTH = "digest", "digest_tenth"
"""The columns of cells.csv: over all runs of a cell, and over the first tenth of its seeds (what `--quick` trains)."""


def cells_with_digests(study: Study) -> pd.DataFrame:
    """Return the cells of a study with the digests of their runs: columns `ALL` and `TENTH` more."""
    sizes = study.cells["n"].to_numpy(np.int64)
    columns = {ALL: digests(study.runs, sizes, sizes), TENTH: digests(study.runs, sizes, sizes // 10)}
    return study.cells.assign(**columns)


def digests(runs: pd.DataFrame, sizes: Sequence[int] | NDArray[np.int64], first: NDArray[np.int64]) -> list[str]:
    """Return a digest for each cell.

    Args:
        runs: the columns `RECORDED` and seed, sorted by cell and seed.
        sizes: how many runs each cell has, shape (cells,).
        first: how many of these the digest covers, shape (cells,).
    """
    recorded = _bits(runs)
    starts = np.append(0, np.cumsum(sizes)[:-1])
    covered = (recorded[start : start + count] for start, count in zip(starts, first, strict=True))
    return [hashlib.sha256(rows.tobytes()).hexdigest()[:DIGITS] for rows in covered]


def _bits(runs: pd.DataFrame) -> NDArray[np.int64]:
    """Return what digests cover as 64-bit words, little-endian on every machine; shape (runs, columns)."""
    words = [runs["seed"].to_numpy("<i8"), pd.Categorical(runs["outcome"], categories=OUTCOMES).codes.astype("<i8")]
    for name in RECORDED[1:]:
        if name.endswith("_step"):  # -1 for a step that never came
            words.append(runs[name].astype("Int64").to_numpy("<i8", na_value=-1))
        else:
            values = runs[name].to_numpy("<f8", copy=True)
            values[np.isnan(values)] = np.nan  # a NaN has many bit patterns
            words.append(values.view("<i8"))
    return np.stack(words, axis=1)
