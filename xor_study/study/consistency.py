"""Whether the files of the reference fit each other, their record and this checkout: nothing is trained for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.analysis.statistics import wilson
from xor_study.errors import StudyError
from xor_study.study.digests import ALL, RECORDED, TENTH, digests
from xor_study.study.equality import MOST_ROWS, Difference, row_names, unequal
from xor_study.study.reference import environment, files_of, inputs, sha256
from xor_study.study.tables import SEEDS, STUDY
from xor_study.training.outcome import OUTCOMES
from xor_study.training.table import distinct_rows

Texts = Callable[[str], pd.DataFrame]
"""(name) -> a table as it is written, every value a text."""


def files_differ(reference: Path, hashes: Mapping[str, str]) -> Iterator[Difference]:
    """Yield which files are not those that the record has hashes of."""
    there = files_of(reference)
    for name in sorted({*hashes, *there}):
        if name not in there:
            yield "file", name, "missing", "in the record"
        elif name not in hashes:
            yield "file", name, "present", "not in the record"
        elif sha256(reference / name) != hashes[name]:
            yield "file", name, f"altered, {sha256(reference / name)[:12]}", f"{hashes[name][:12]} in the record"


def record_differs(tables: Texts, record: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield what in the record contradicts the tables beside it, or the files of this checkout that were its inputs.

    Args:
        tables: (name) -> a table of the reference.
        record: of the reference.
    """
    where = "provenance.json"
    if missing := environment().keys() - record["environment"].keys():
        yield where, "environment", f"without {', '.join(sorted(missing))}", "recorded now"
    before, now = record.get("inputs"), inputs()
    if not isinstance(before, dict):
        yield where, "inputs", "missing", "recorded now"
        before = now
    for name in sorted({*before, *now}):
        one, other = (str(hashes.get(name, "missing"))[:12] for hashes in (before, now))
        if one != other:
            yield "input", name, one, other
    runs, cells = tables("runs"), tables("cells")
    told = {"study": STUDY, "runs": int(integers(cells, "n").sum()), "cells": len(cells)}
    told |= {"torch_version": record["environment"].get("torch")}
    for name, value in told.items():
        if record.get(name) != value:
            yield where, name, str(record.get(name)), str(value)
    for name in ("torch_version", "package_version", "git_commit"):
        others = set(runs.get(name, pd.Series(["missing"]))) - {str(record.get(name))}
        if others:
            yield where, f"{name} of runs", str(record.get(name)), ", ".join(sorted(others))


def integers(table: pd.DataFrame, column: str) -> NDArray[np.int64]:
    """Return a column of texts as whole numbers.

    Raises:
        StudyError: if it is missing or holds anything else.
    """
    try:
        return table[column].to_numpy(object).astype(np.int64)
    except (KeyError, ValueError) as error:
        raise StudyError(f"cells.csv of the reference: column {column}: {error}") from error


def cells_contradict(tables: Texts) -> Iterator[Difference]:
    """Yield where the table of cells contradicts itself, or the runs that are kept of each cell.

    Counts of outcomes must add up, shares and intervals must follow from them, and no count may be below that of the
    runs kept. A digest must be theirs, if all of the runs that it covers are kept.

    Args:
        tables: (name) -> a table of the reference.
    """
    cells, runs = tables("cells"), tables("runs")
    names = row_names(cells, CELL)
    n = integers(cells, "n")
    counts = {outcome: integers(cells, f"{outcome}_runs") for outcome in OUTCOMES}
    yield from _marked("sum of outcomes", names, sum(counts.values()), n)
    for outcome, count in counts.items():
        ends = np.array([wilson(int(k), int(m)) for k, m in zip(count, n, strict=True)])
        for column, values in zip((outcome, f"{outcome}_low", f"{outcome}_high"), (count / n, *ends.T), strict=True):
            off = unequal(cells[column], pd.Series(values.astype(str)))
            yield from _marked(f"{column} of {outcome}_runs", names[off], cells[column][off], values[off])
    settings = [key for key in CELL if key in runs and key in cells]  # code newer than the reference may have more
    number, firsts = distinct_rows((runs[key] for key in settings), len(runs))
    if not runs[settings].iloc[firsts].reset_index(drop=True).equals(cells[settings]):
        yield "cells.csv", "order of its rows", "another", "as in runs.csv.gz"
        return
    yield from _marked("runs kept", names, np.bincount(number), np.minimum(n, SEEDS))
    for outcome, count in counts.items():
        kept = np.bincount(number[(runs["outcome"] == outcome).to_numpy()], minlength=len(n))
        yield from _marked(f"{outcome} runs below those kept", names, np.minimum(count, kept), kept)
    yield from _digests_contradict(cells, runs, np.bincount(number), names)


def _digests_contradict(
    cells: pd.DataFrame, runs: pd.DataFrame, kept: NDArray[np.int64], names: pd.Index[str]
) -> Iterator[Difference]:
    if not {ALL, TENTH} <= set(cells):
        return
    typed = pd.DataFrame({"seed": runs["seed"].astype(np.int64), "outcome": runs["outcome"]})
    for column in RECORDED[1:]:
        # Python reads a text back to the same bits, which pandas does not promise.
        typed[column] = [float(text) if text else np.nan for text in runs[column]]
    n = integers(cells, "n")
    for column, covered in ((ALL, n), (TENTH, n // 10)):
        here = np.array(digests(typed, kept, np.minimum(covered, kept)))
        off = (covered <= kept) & (cells[column].to_numpy(object) != here)
        yield from _marked(f"{column} of the runs kept", names[off], cells[column][off], here[off])


def _marked(what: str, names: Any, there: Any, here: Any) -> Iterator[Difference]:
    """Yield the cells whose values differ, the first of them by name."""
    one, other = np.asarray(there), np.asarray(here)
    rows = np.flatnonzero(one != other).tolist()
    for row in rows[:MOST_ROWS]:
        yield f"cells.csv, {what}", str(names[row]), str(one[row]), str(other[row])
    if len(rows) > MOST_ROWS:
        yield f"cells.csv, {what}", f"{len(rows) - MOST_ROWS:,} more cells", "", ""


def software(record: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return which of some software had another version when the reference was made; of Python only the minor counts.

    Args:
        record: of the reference.
        names: keys of the environment.
    """
    before, now = record["environment"], environment()
    pairs = [(name, str(before[name]), now[name]) for name in names if name in before]
    unlike = [(name, *both) for name, *both in pairs if _version(name, both[0]) != _version(name, both[1])]
    return [f"{name} {one} there, {other} here" for name, one, other in unlike]


def _version(name: str, text: str) -> str:
    return ".".join(text.split(".")[:2]) if name == "python" else text
