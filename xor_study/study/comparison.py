"""What differs between a reproduction and the reference: files, cells, runs, verdicts and Axon's traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xor_study.analysis.cells import CELL
from xor_study.analysis.statistics import holm, two_samples
from xor_study.errors import typed
from xor_study.study.processes import Each
from xor_study.study.reference import AXON, environment, read_provenance, read_table, sha256
from xor_study.study.traces import read_trace, replay
from xor_study.training.outcome import OUTCOMES
from xor_study.training.spec import KEYS, RunSpec

MADE_BY = ("run_id", "engine", "device", "torch_version", "package_version", "git_commit")
"""Columns of a run that are not compared: its name, and the software that made it."""

SIGNIFICANT = 0.01

Difference = tuple[str, str, str, str]
"""What differs, where, and its value in the reference and here."""


def differences(
    reference: Path, tables: Mapping[str, pd.DataFrame], quick: bool, each: Each = map
) -> tuple[bool, pd.DataFrame]:
    """Compare a reproduction with the reference.

    Where versions and processor are the reference's, runs and cells must be equal bit for bit; elsewhere the rates of
    each cell must be compatible (Fisher's exact test at 1 %, Holm's correction). Verdicts must be the same; of a quick
    run, which has a tenth of the seeds, they must not contradict. The reference's files must match their hashes.

    Args:
        reference: the folder of the reference.
        tables: of the reproduction; "cells", "runs" and "claims" are read.
        quick: whether it has a tenth of the seeds.
        each: as `map`, or `map` of a pool of processes.

    Returns:
        whether bits were compared, and the differences: columns what, where, reference, here.

    Raises:
        StudyError: if the reference can't be read.
    """
    record = read_provenance(reference)
    exact = record["environment"] == environment()
    rows = [
        *_files_differ(reference, record["sha256"]),
        *_cells_differ(read_table(reference, "cells"), tables["cells"], exact and not quick),
        *_runs_differ(read_table(reference, "runs"), tables["runs"], exact, quick),
        *_verdicts_differ(read_table(reference, "claims"), tables["claims"], quick),
    ]
    for traces in each(_trace_differs, sorted(AXON.glob("trace_*.json"))):
        rows += traces
    return exact, pd.DataFrame(rows, columns=["what", "where", "reference", "here"])


def _files_differ(reference: Path, hashes: Mapping[str, str]) -> Iterator[Difference]:
    for name, expected in hashes.items():
        path = reference / name
        if not path.is_file():
            yield "file", name, expected[:12], "missing"
        elif sha256(path) != expected:
            yield "file", name, expected[:12], f"altered, {sha256(path)[:12]}"


def _only_in_one(what: str, there: pd.Index[Any], here: pd.Index[Any]) -> Iterator[Difference]:
    for name in there.symmetric_difference(here):
        sides = ("missing", "present") if name in here else ("present", "missing")
        yield what, str(name), *sides


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of cells indexed by a name for each: what it differs in from the article's network."""
    usual = {key: typed(getattr(RunSpec(), field)) for key, field in KEYS.items()}
    names = []
    for row in table[CELL].astype(object).itertuples(index=False):
        values = {key: typed(value) for key, value in zip(CELL, row, strict=True) if not pd.isna(value)}
        names.append(" ".join(f"{key}={text}" for key, text in values.items() if text != usual[key]))
    return table.set_index(pd.Index([name or "the article's" for name in names]))


def _cells_differ(there: pd.DataFrame, here: pd.DataFrame, exact: bool) -> Iterator[Difference]:
    there, here = _named(there), _named(here)
    yield from _only_in_one("cell", there.index, here.index)
    common = there.index.intersection(here.index)
    unequal = list(_unequal_counts(there.loc[common], here.loc[common], exact))
    if exact:
        adjusted = [0.0] * len(unequal)
    else:
        p = [two_samples((one[0], other[0]), (one[1], other[1])) for _, _, one, other in unequal]
        # Cells that agree count as comparisons too: their p is 1.
        adjusted = holm(p + [1.0] * (len(common) * len(OUTCOMES) - len(p)))
    for (outcome, name, one, other), chance in zip(unequal, adjusted, strict=False):
        if chance < SIGNIFICANT:
            yield f"runs {outcome}", name, f"{one[0]} of {one[1]}", f"{other[0]} of {other[1]}"


Count = tuple[int, int]
"""How many runs, of how many."""


def _unequal_counts(there: pd.DataFrame, here: pd.DataFrame, exact: bool) -> Iterator[tuple[str, str, Count, Count]]:
    """Yield outcome, cell and the counts there and here that are not equal, or not of equal rates.

    Args:
        there: cells by name.
        here: the same cells in the same order.
        exact: whether equal rates of different numbers of runs are unequal.
    """
    n, m = (table["n"].to_numpy(np.int64) for table in (there, here))
    for outcome in OUTCOMES:
        one, other = (table[f"{outcome}_runs"].to_numpy(np.int64) for table in (there, here))
        unequal = one != other if exact else one * m != other * n
        for row in np.flatnonzero(unequal).tolist():
            yield outcome, str(there.index[row]), (int(one[row]), int(n[row])), (int(other[row]), int(m[row]))


def _runs_differ(there: pd.DataFrame, here: pd.DataFrame, exact: bool, quick: bool) -> Iterator[Difference]:
    there, here = there.set_index("run_id"), here.set_index("run_id")
    if quick:  # of cells with fewer than 200 runs it has fewer than 20 seeds
        there = there[there.index.isin(here.index) | (there["seed"] == 0)]
    yield from _only_in_one("run", there.index, here.index)
    duplicated = there.index.duplicated()
    for run_id in there.index[duplicated]:
        yield "run", str(run_id), "twice", "once"
    if not exact:
        return
    common = there.index.intersection(here.index)
    there, here = there[~duplicated].loc[common], here.loc[common]
    # Runs with one identity are of one cell, so the columns of cells are equal by construction.
    for column in there.columns.difference([*MADE_BY, *CELL]):
        one, other = (table[column].astype(object) for table in (there, here))
        # Bit for bit: texts of floats read back exactly, and a missing value equals a missing one.
        same = (one == other).fillna(False) | (one.isna() & other.isna())
        for run_id in common[~same.to_numpy(bool)]:
            yield column, str(run_id), str(one[run_id]), str(other[run_id])


def _verdicts_differ(there: pd.DataFrame, here: pd.DataFrame, quick: bool) -> Iterator[Difference]:
    before, now = (table.set_index("claim")["verdict"] for table in (there, here))
    for name in before.index.union(now.index, sort=False):
        one, other = str(before.get(name, "missing")), str(now.get(name, "missing"))
        if one != other and not (quick and "undecided" in (one, other)):
            yield "verdict", str(name), one, other


def _trace_differs(path: Path) -> list[Difference]:
    """Return which replays of the real Axon's recorded training exceed their tolerance, on the fast engine."""
    return [
        ("trace", f"{result.trace} {result.run}", "within tolerance", ", ".join(result.exceeded))
        for result in replay(read_trace(path), ["lanes"])
        if result.exceeded
    ]
