"""What differs between two tables or two pages of a reproduction, in rows of what, where, and the value in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from operator import add
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xor_study.analysis.cells import CELL
from xor_study.errors import show
from xor_study.training.spec import KEYS, RunSpec

TOLERANCE = 1e-9
"""The largest relative deviation of numbers that are taken for equal: the last digits depend on the processor."""

MOST_ROWS = 3
"""Rows that are named of each column in which tables differ."""

USUAL = RunSpec()

Difference = tuple[str, str, str, str]
"""What differs, where, and its value in the reference and here."""


def only_in_one(what: str, there: pd.Index[str], here: pd.Index[str]) -> Iterator[Difference]:
    """Yield the names that only the reference has, or only the reproduction."""
    for names, sides in (
        (there.difference(here, sort=False), ("present", "missing")),
        (here.difference(there, sort=False), ("missing", "present")),
    ):
        for name in names[:MOST_ROWS]:
            yield what, str(name), *sides
        if len(names) > MOST_ROWS:
            yield what, f"{len(names) - MOST_ROWS:,} more", *sides


def tables_differ(name: str, there: pd.DataFrame, here: pd.DataFrame) -> Iterator[Difference]:
    """Yield how a table differs: columns, rows, the order of rows, and values beyond `TOLERANCE`.

    Rows are matched by their names (see `row_names`) where these are unique, else by their position.

    Args:
        name: of the table.
        there: the committed one, of `read_texts`.
        here: the regenerated one, likewise.
    """
    what = f"table {name}"
    yield from only_in_one(f"{what}, column", there.columns, here.columns)
    columns = [column for column in here.columns if column in there.columns]
    there, here = there[columns], here[columns]
    names = naming_columns(here)
    there, here = (table.set_index(row_names(table, names)) for table in (there, here))
    if here.index.is_unique:
        there, differing = matched(what, there, here)
        yield from differing
        here = here.loc[there.index]
    else:
        if len(there) != len(here):
            yield what, "rows", f"{len(there):,}", f"{len(here):,}"
        there, here = there.head(len(here)), here.head(len(there))
        here.index = there.index = [f"row {number} {name}" for number, name in enumerate(here.index, start=1)]
    yield from values_differ(what, there, here)


def matched(what: str, there: pd.DataFrame, here: pd.DataFrame) -> tuple[pd.DataFrame, list[Difference]]:
    """Return the rows of the reference that both tables have, once each, and how the rows differ.

    Args:
        what: the tables' name in the differences.
        there: the committed one, indexed by the names of its rows.
        here: the regenerated one, likewise; each name is there once.
    """
    again = there.index.duplicated()
    differing = [(f"{what}, row", str(name), "twice", "once") for name in there.index[again][:MOST_ROWS]]
    there = there[~again]
    differing += only_in_one(f"{what}, row", there.index, here.index)
    there = there[there.index.isin(here.index)]
    if list(there.index) != list(here.index[here.index.isin(there.index)]):
        differing.append((what, "order of its rows", "another", "of the code"))
    return there, differing


def values_differ(what: str, there: pd.DataFrame, here: pd.DataFrame, exactly: bool = False) -> Iterator[Difference]:
    """Yield how the values of two tables with the same rows and columns differ.

    Args:
        what: the tables' name in the differences.
        there: the committed one, of texts; its index names the rows.
        here: the regenerated one, likewise.
        exactly: without a tolerance.
    """
    for column in there.columns:
        off = unequal(there[column], here[column], 0.0 if exactly else TOLERANCE)
        rows = np.flatnonzero(off).tolist()
        for row in rows[:MOST_ROWS]:
            one, other = (show(table[column].iloc[row]) for table in (there, here))
            yield f"{what}, {column}", str(there.index[row]), one, other
        if len(rows) > MOST_ROWS:
            yield f"{what}, {column}", f"{len(rows) - MOST_ROWS:,} more of {len(there):,} rows", "", ""


def unequal(one: pd.Series[str], other: pd.Series[str], tolerance: float = TOLERANCE) -> NDArray[np.bool_]:
    """Return which texts differ, other than by a small difference between two numbers.

    Args:
        one: texts.
        other: as many.
        tolerance: the largest relative difference of equal numbers.

    Example:
        >>> unequal(pd.Series(["a", "2.0", "nan", "inf"]), pd.Series(["b", "2.0000000001", "nan", "1e300"])).tolist()
        [True, False, False, True]
    """
    texts, others = one.to_numpy(object), other.to_numpy(object)
    off = np.asarray(texts != others, bool)
    if tolerance and off.any():
        a, b = (
            pd.to_numeric(pd.Series(values[off]), errors="coerce").to_numpy(np.float64) for values in (texts, others)
        )
        with np.errstate(invalid="ignore"):
            # A comparison with NaN is false; that of infinity with a number too, since their difference is infinite.
            close = np.isfinite(a - b) & (np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b)))
        off[off] = ~close
    return off


def naming_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns whose values name a row: the first ones, as few as make all names unique.

    They end before the first measured number, whose last digits may differ elsewhere; of runs and cells they are all
    settings.

    Args:
        table: of `read_texts`.
    """
    if "run_id" in table.columns:
        return ["run_id"]
    if set(CELL) <= set(table.columns):
        return CELL
    names: list[str] = []
    for column in table.columns:
        if table[column].str.contains(r"^-?\d+\.\d|^-?\d+e-?\d|^nan$|inf$").any():
            break
        names.append(column)
        if not table.duplicated(names).any():
            break
    return names


def row_names(table: pd.DataFrame, columns: Sequence[str]) -> pd.Index[str]:
    """Return a name for each row of a table of texts: of a cell what it differs in from the article's network.

    Args:
        table: of `read_texts`.
        columns: of `naming_columns`.
    """
    if list(columns) == ["run_id"]:
        run_ids: list[str] = table["run_id"].tolist()
        return pd.Index(run_ids)
    usual = {key: str(getattr(USUAL, field)) for key, field in KEYS.items()} if columns == CELL else {}
    names = [""] * len(table)
    for column in (column for column in columns if column in table):  # code newer than the reference may have more
        left_out = ("", usual.get(column))
        texts = ["" if value in left_out else f" {column}={value}" for value in table[column].tolist()]
        names = list(map(add, names, texts))
    texts = [name.strip() or "the article's" for name in names]
    return pd.Index(texts)


def texts_differ(path: Path, other: Path, name: str) -> Iterator[Difference]:
    """Yield the first line in which two text files differ, if any does.

    Args:
        path: the committed file.
        other: the regenerated one.
        name: of both.
    """
    before, now = path.read_bytes(), other.read_bytes()
    if before == now:
        return
    lines, others = (content.decode(errors="replace").splitlines() for content in (before, now))
    pairs = enumerate(zip_longest(lines, others, fillvalue="(no such line)"), start=1)
    number, (line, counterpart) = next(
        (place for place in pairs if place[1][0] != place[1][1]), (0, ("other ends of lines", ""))
    )
    same = next((n for n, (a, b) in enumerate(zip(line, counterpart, strict=False)) if a != b), 0)
    start = max(0, same - 20)  # a line may hold a whole picture
    yield "page", f"{name}, line {number}", show(line[start : start + 60]), show(counterpart[start : start + 60])
