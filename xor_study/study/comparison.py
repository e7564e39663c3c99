"""What differs between a reproduction and the reference: files, runs, tables, figures, pages and Axon's traces.

Runs come first, bit for bit, on any processor. If they are identical, every table must be equal to `TOLERANCE`, and
every figure and page is made again from the reproduction's tables. If they are not, that is a difference, unless the
versions of what computes them are others than the reference's: then rates and verdicts are compared instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xor_study.analysis.cells import CELL
from xor_study.analysis.statistics import SIGNIFICANT, holm, two_samples
from xor_study.errors import StudyError
from xor_study.figures.pictures import LEVELS, PIXELS
from xor_study.study.consistency import Texts, cells_contradict, files_differ, integers, record_differs, software
from xor_study.study.digests import ALL, RECORDED, TENTH
from xor_study.study.equality import (
    TOLERANCE,
    Difference,
    matched,
    only_in_one,
    row_names,
    tables_differ,
    unequal,
    values_differ,
)
from xor_study.study.processes import Each
from xor_study.study.redrawing import redrawn
from xor_study.study.reference import AXON, read_provenance, read_texts, table_files, table_path
from xor_study.study.traces import read_trace, replay
from xor_study.training.outcome import OUTCOMES

MADE_BY = ["engine", "device", "torch_version", "package_version", "git_commit", "code"]
"""Columns of a run that say which software made it: not compared with the reproduction's, but with the record."""

DECISIVE = ("python", "torch", "numpy", "llvmlite", "system", "libc")
"""Parts of the environment that may decide about a run's bits."""

VECTORS = ("instruction_set",)
"""What may decide besides about the bits of runs that torch's own kernels compute, in any engine but lanes."""

RENDERER = ("matplotlib", "freetype", "fonttools")
"""Parts of the environment that decide how a figure looks."""


NEEDED = {
    "runs": ["run_id", "seed", "engine", *RECORDED],
    "cells": ["n", *(f"{outcome}{end}" for outcome in OUTCOMES for end in ("_runs", "", "_low", "_high"))],
    "claims": ["claim", "verdict"],
}
"""Columns that a comparison can't do without, by table."""


@dataclass
class Comparison:
    """What came of comparing a reproduction with the reference.

    Attributes:
        compared: what was compared, in a few words each.
        left_out: what was not, and why.
        rows: the differences.
    """

    compared: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: list[Difference] = field(default_factory=list)

    @property
    def differing(self) -> pd.DataFrame:
        """The differences as a table: columns what, where, reference, here."""
        return pd.DataFrame(self.rows, columns=["what", "where", "reference", "here"])


def check_reference(folder: Path) -> None:
    """Check that a reproduction can be compared with the results in a folder.

    Raises:
        StudyError: if the record or a table of `NEEDED` is missing, can't be read, or lacks a column.
    """
    read_provenance(folder)
    for name, columns in NEEDED.items():
        there = read_texts(folder, name).columns
        if missing := [column for column in columns if column not in there]:
            raise StudyError(f"{table_path(folder, name)}: has no column {', '.join(missing)}")


def differences(reference: Path, fresh: Path, quick: bool, each: Each = map) -> Comparison:
    """Compare a reproduction with the reference.

    Args:
        reference: the folder of the reference.
        fresh: the folder of the reproduction: its tables, with or without figures.
        quick: whether it has a tenth of the seeds. Then runs are compared bit for bit, rates, and tables about single
            runs; figures and pages are made from the reference's own tables, which must not contradict each other.
        each: as `map`, or `map` of a pool of processes.

    Raises:
        StudyError: as `check_reference`.
    """
    check_reference(reference)
    found, record = Comparison(), read_provenance(reference)
    there, here = (cache(partial(read_texts, folder)) for folder in (reference, fresh))
    found.rows += [*files_differ(reference, record["sha256"]), *record_differs(there, record)]
    runs = compare_runs(there, here, quick)
    others = [] if runs.identical else software(record, DECISIVE + VECTORS * ("lanes" not in runs.engines))
    found.compared.append(runs.text + (f"; versions may be why: {', '.join(others)}" if others else ""))
    found.rows += [] if others else runs.differing
    if quick or not runs.identical:
        _compare_rates(found, there, here)
    if quick or others:
        _compare_verdicts(found, there, here, quick)
    _compare_tables(found, reference, fresh, quick, bool(others))
    _compare_files(found, reference, reference if quick or not runs.identical else fresh, record, each)
    traces = sorted(AXON.glob("trace_*.json"))
    for rows in each(_trace_differs, traces):
        found.rows += rows
    found.compared.append(f"{len(traces)} traces of Axon")
    return found


class Runs(NamedTuple):
    """How the runs compare.

    Attributes:
        identical: whether all are.
        engines: of those that are not.
        text: all this in words.
        differing: the differences.
    """

    identical: bool
    engines: set[str]
    text: str
    differing: list[Difference]


def compare_runs(reference: Texts, fresh: Texts, quick: bool) -> Runs:
    """Compare all runs of a reproduction with the reference's, bit for bit.

    All by the digests of their cells, and those that both keep one by one.

    Args:
        reference: (name) -> a table of the reference.
        fresh: likewise of the reproduction.
        quick: whether the reproduction has the first tenth of the seeds of each cell.
    """
    kept, same, engines, differing = _kept_runs(reference, fresh, quick)
    there, here = (tables("cells") for tables in (reference, fresh))
    if not {ALL, TENTH} <= set(there):
        text = f"{same:,} of {kept:,} runs identical, one by one; the other runs have no digests in cells.csv"
        advice = "without: write the reference again with reproduce --out"
        differing.append(("cells.csv", f"columns {ALL} and {TENTH}", advice, "with"))
        return Runs(same == kept, engines, text, differing)
    there, here = (table.set_index(row_names(table, CELL)) for table in (there, here))
    there, n = there[~there.index.duplicated()].reindex(here.index), integers(here, "n")
    # A quick run has only the first tenth of the seeds, so all of its runs are those.
    pairs = [(TENTH, ALL)] if quick else [(TENTH, TENTH), (ALL, ALL)]
    for column, counterpart in pairs:
        one, other = there[column].fillna("missing"), here[counterpart]
        equal = ~unequal(one, other, 0)
        differing += values_differ("digest of runs", one.to_frame(), other.rename(column).to_frame(), exactly=True)
    identical, total = int(n[equal].sum()), int(n.sum())
    text = f"{identical:,} of {total:,} runs identical"
    if same < kept or identical < total:
        columns = sorted({row[0].partition(", ")[2] for row in differing if row[0].startswith("run, ")})
        text += f" by the digests of their cells, {same:,} of {kept:,} one by one"
        text += f" (others differ in {', '.join(columns)})" if columns else ""
    runs = fresh("runs").drop_duplicates(CELL)
    engines = set(runs["engine"][~equal[here.index.get_indexer(row_names(runs, CELL))]])
    return Runs(identical == total, engines, text, differing)


def _kept_runs(reference: Texts, fresh: Texts, quick: bool) -> tuple[int, int, set[str], list[Difference]]:
    """Return how many runs both keep, how many of these are identical, the engines of the others, and differences."""
    there, here = (tables("runs").set_index("run_id") for tables in (reference, fresh))
    engines = here["engine"]
    there, here = (table.drop(columns=MADE_BY, errors="ignore") for table in (there, here))
    if quick:
        there = there[there.index.isin(here.index)]  # of most cells it has fewer seeds than are kept
    differing = list(only_in_one("run, column", there.columns, here.columns))
    there, rows = matched("run", there, here)
    here, columns = here.loc[there.index], [column for column in there if column in here]
    differing += [*rows, *values_differ("run", there[columns], here[columns], exactly=True)]
    off = np.zeros(len(there), bool)
    for column in columns:
        off |= unequal(there[column], here[column], 0)
    return len(there), int((~off).sum()), set(engines[there.index[off]]), differing


def _compare_rates(found: Comparison, reference: Texts, fresh: Texts) -> None:
    """Compare how many runs of each cell had which outcome, by Fisher's exact test with Holm's correction."""
    there, here = (tables("cells") for tables in (reference, fresh))
    there, here = (table.set_index(row_names(table, CELL)) for table in (there, here))
    there, rows = matched("cell", there, here)
    unlike = list(_rates_differ(there, here.loc[there.index]))
    found.rows += [*rows, *unlike, *cells_contradict(reference)]
    found.compared.append(f"rates of {len(there):,} cells" + ("" if not unlike else f": {len(unlike)} not compatible"))


def _rates_differ(there: pd.DataFrame, here: pd.DataFrame) -> Iterator[Difference]:
    n, m = (integers(table, "n") for table in (there, here))
    pairs = []
    for outcome in OUTCOMES:
        one, other = (integers(table, f"{outcome}_runs") for table in (there, here))
        for row in np.flatnonzero(one * m != other * n).tolist():
            counts = (int(one[row]), int(other[row])), (int(n[row]), int(m[row]))
            pairs.append((outcome, str(there.index[row]), *counts))
    test = cache(two_samples)  # many cells have equal counts
    p = [test(successes, trials) for _, _, successes, trials in pairs]
    # Cells that agree count as comparisons too: their p is 1.
    adjusted = holm(p + [1.0] * (len(there) * len(OUTCOMES) - len(p)))
    for (outcome, name, successes, trials), chance in zip(pairs, adjusted, strict=False):
        if chance < SIGNIFICANT:
            texts = [f"{count} of {total}" for count, total in zip(successes, trials, strict=True)]
            yield f"runs {outcome}", name, texts[0], texts[1]


def _compare_verdicts(found: Comparison, reference: Texts, fresh: Texts, quick: bool) -> None:
    """Compare verdicts; one of a tenth of the seeds may be undecided."""
    before, now = (tables("claims").set_index("claim")["verdict"] for tables in (reference, fresh))
    names, undecided = before.index.union(now.index, sort=False), 0
    for name in names:
        one, other = str(before.get(name, "missing")), str(now.get(name, "missing"))
        if one != other and quick and "undecided" in (one, other):
            undecided += 1
        elif one != other:
            found.rows.append(("verdict", str(name), one, other))
    found.compared.append(f"{len(names) - undecided} verdicts")
    found.left_out += [f"{undecided} of {len(names)} verdicts (undecided with few seeds)"] if undecided else []


def _compare_tables(found: Comparison, reference: Path, fresh: Path, quick: bool, other_versions: bool) -> None:
    """Compare all tables, or of a tenth of the seeds only what is about single runs.

    Args:
        found: is added to.
        reference: as in `differences`.
        fresh: likewise.
        quick: likewise.
        other_versions: whether runs are not identical, and need not be.
    """
    there, here = ([path.name.partition(".")[0] for path in table_files(folder)] for folder in (reference, fresh))
    found.rows += only_in_one("table", pd.Index(there), pd.Index(here))
    others = [name for name in here if name in there and name not in ("runs", *_COMPARED_BEFORE * quick)]
    left = [name for name in others if other_versions or not _compare_table(found, name, reference, fresh, quick)]
    found.compared.append(f"{len(others) - len(left)} tables to {TOLERANCE:g}")
    if left:
        reason = "other versions" if other_versions else "they need all seeds"
        found.left_out.append(f"{len(left)} of {len(others)} tables ({reason}: {', '.join(left)})")


_COMPARED_BEFORE = ("cells", "claims")
"""Tables of a quick run that `_compare_rates` and `_compare_verdicts` compare."""


def _compare_table(found: Comparison, name: str, reference: Path, fresh: Path, quick: bool) -> bool:
    """Compare one table, of a quick run the rows about runs that it has; return whether there are any."""
    if not quick and table_path(reference, name).read_bytes() == table_path(fresh, name).read_bytes():
        return True
    there, here = (read_texts(folder, name) for folder in (reference, fresh))
    if not quick:
        there, here = (table.drop(columns=[ALL, TENTH], errors="ignore") for table in (there, here))
        found.rows += tables_differ(name, there, here)
        return True
    if "seed" not in there or "seed" not in here:
        found.rows += only_in_one(f"table {name}, column", there.columns, here.columns)
        return False
    # Columns up to the seed tell runs apart; there may be several rows of each, such as steps.
    names = list(here.columns[: list(here.columns).index("seed") + 1])
    there, here = (table.set_index(row_names(table, [c for c in names if c in table])) for table in (there, here))
    there, here = there[there.index.isin(here.index)], here[here.index.isin(there.index)]
    found.rows += tables_differ(name, there.reset_index(drop=True), here.reset_index(drop=True))
    return len(here) > 0


def _compare_files(found: Comparison, reference: Path, tables: Path, record: Mapping[str, Any], each: Each) -> None:
    """Compare figures and pages with those that are made again from the tables in a folder."""
    others = software(record, RENDERER)
    figures, pages, rows = redrawn(reference, tables, record, not others, each)
    found.rows += rows
    source = " made from the reference's own tables" if tables == reference else ""
    found.compared.append(f"{pages} pages{source}, letter by letter")
    if others:
        found.left_out.append(f"{figures} pictures of figures ({', '.join(others)})")
    else:
        tolerance = f"at most {PIXELS} pixels off by more than {LEVELS} of 255 levels"
        found.compared.append(f"{figures} pictures of figures{source} ({tolerance})")


def _trace_differs(path: Path) -> list[Difference]:
    """Return which replays of the real Axon's recorded training exceed their tolerance, on the fast engine."""
    return [
        ("trace", f"{result.trace} {result.run}", "within tolerance", ", ".join(result.exceeded))
        for result in replay(read_trace(path), ["lanes"])
        if result.exceeded
    ]
